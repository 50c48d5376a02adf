"""The mini encyclopedia is large, repeatable, answerable, and keeps its evaluation out of training."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.errors import DataError
from megatron_retrieval.testing.encyclopedia.build import Encyclopedia, build_encyclopedia
from megatron_retrieval.testing.encyclopedia.kinds import load_kinds
from megatron_retrieval.testing.encyclopedia.output import EncyclopediaConfig, write_encyclopedia
from megatron_retrieval.testing.encyclopedia.vocabulary import SPECIAL_PIECES, train_wordpiece
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.files import file_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encyclopedia") / "data"


@pytest.fixture(scope="module")
def encyclopedia(folder: Path) -> Encyclopedia:
    """What was written into the folder."""
    return write_encyclopedia(EncyclopediaConfig(output=folder))


def test_it_is_large_and_its_passages_are_short(encyclopedia: Encyclopedia) -> None:
    assert len(encyclopedia.passages) >= 3000
    assert len(encyclopedia.train) >= 4000
    assert len(encyclopedia.evaluation) >= 300
    lengths = [len(passage.text.split()) for passage in encyclopedia.passages]
    assert min(lengths) >= 10
    assert max(lengths) <= 100


def test_ids_are_those_of_the_rows(encyclopedia: Encyclopedia) -> None:
    assert sorted(int(passage.id) for passage in encyclopedia.passages) == list(
        range(1, len(encyclopedia.passages) + 1)
    )


def test_gold_passages_hold_the_answer_and_distractors_do_not(encyclopedia: Encyclopedia) -> None:
    for ask in (*encyclopedia.train, *encyclopedia.evaluation):
        answer = normalized(ask.answer)
        assert answer in normalized(ask.gold.text), ask
        assert ask.gold not in ask.distractors
        assert all(answer not in normalized(passage.text) for passage in ask.distractors), ask


def test_nothing_is_asked_in_training_about_entities_of_the_evaluation(encyclopedia: Encyclopedia) -> None:
    asked = {ask.gold.id for ask in encyclopedia.train}
    assert not asked & {ask.gold.id for ask in encyclopedia.evaluation}
    assert not {ask.text for ask in encyclopedia.train} & {ask.text for ask in encyclopedia.evaluation}
    held_out_titles = {ask.gold.title for ask in encyclopedia.evaluation}
    shared = held_out_titles & {ask.gold.title for ask in encyclopedia.train}
    assert shared <= {"Mercury"}, "a planet and an element share the name"


def test_an_answer_is_rarely_found_by_chance(encyclopedia: Encyclopedia) -> None:
    texts = [normalized(passage.text) for passage in encyclopedia.passages]
    sample = encyclopedia.evaluation[::10]
    holding = [sum(normalized(ask.answer) in text for text in texts) for ask in sample]
    assert max(holding) <= 12
    assert sum(holding) / len(sample) / len(texts) < 0.001


def test_questions_are_worded_unlike_the_sentences_that_answer_them() -> None:
    for kind_name, kind in load_kinds().items():
        for name, relation in kind.relations.items():
            for ask in relation.asks:
                for sentence in relation.says:
                    shared = _content_words(ask) & _content_words(sentence)
                    assert not shared, f"{kind_name}.{name}: {ask!r} and {sentence!r} share {sorted(shared)}"


def _content_words(pattern: str) -> set[str]:
    plain = pattern.replace("{name}", " ").replace("{value}", " ")
    return {word for word in normalized(plain).split() if len(word) > 3} - {"first", "from", "into", "planet", "where"}


def test_other_seeds_give_other_text(encyclopedia: Encyclopedia) -> None:
    other = build_encyclopedia(seed=2)
    assert {passage.text for passage in other.passages} != {passage.text for passage in encyclopedia.passages}


@pytest.mark.usefixtures("encyclopedia")
def test_files_do_not_depend_on_the_process(folder: Path, tmp_path: Path) -> None:
    program = "from megatron_retrieval.testing.encyclopedia.output import *; import sys; from pathlib import Path; "
    program += "write_encyclopedia(EncyclopediaConfig(output=Path(sys.argv[1])))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "again")], check=True, env={"PYTHONHASHSEED": "7"})
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "biencoder-dev.json",
        "biencoder-train.json",
        "dev.qa.csv",
        "psgs_w100.tsv",
        "train.qa.csv",
        "vocab.txt",
    ]
    for name in names:
        assert file_fingerprint(folder / name) == file_fingerprint(tmp_path / "again" / name), name


def test_the_files_read_back(folder: Path, encyclopedia: Encyclopedia) -> None:
    with open(folder / "psgs_w100.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {(row["id"], row["title"], row["text"]) for row in rows} == {
        (passage.id, passage.title, passage.text) for passage in encyclopedia.passages
    }
    questions = list(read_questions(folder / "dev.qa.csv"))
    assert [(q.text, q.answers) for q in questions] == [(ask.text, (ask.answer,)) for ask in encyclopedia.evaluation]
    (first, *_) = read_biencoder(folder / "biencoder-train.json")
    assert first.question == encyclopedia.train[0].text


@pytest.mark.usefixtures("encyclopedia")
def test_the_vocabulary_keeps_words_whole_and_cuts_names(folder: Path) -> None:
    tokenizer = WordPieceTokenizer(folder / "vocab.txt")
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(tokenizer.encode(["what is the capital of the realm"])[0]) == 7
    assert pieces[tokenizer.encode(["Quenlethal"])[0][0]] == "quen"
    assert all(pieces.index("[UNK]") not in ids for ids in tokenizer.encode(["Brasília?", "1,234", "Quenlethal"]))


def test_wordpiece_joins_frequent_pairs_first_and_breaks_ties_by_the_alphabet() -> None:
    pieces = train_wordpiece(["ab ab ab", "cd cd", "xy xy", "z"], size=100, min_count=2)
    letters = 7
    assert pieces[: len(SPECIAL_PIECES)] == list(SPECIAL_PIECES)
    assert pieces[len(SPECIAL_PIECES) + 2 * letters :] == ["ab", "cd", "xy"]
    assert train_wordpiece(["abc abc abc"], size=100, min_count=3)[-1] == "abc"
    assert "ab" not in train_wordpiece(["ab"], size=100, min_count=2)


@pytest.mark.usefixtures("encyclopedia")
def test_an_existing_folder_is_left_alone(folder: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        write_encyclopedia(EncyclopediaConfig(output=folder))
