"""Questions for end-to-end training: the answer to learn, what is excluded, shares of ranks, texts of what is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_retrieval.data.examples.open_questions import AskedBatch, AskedQuestions
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.question_writer import QuestionSource, write_question_store
from megatron_retrieval.data.stores.questions import QuestionStore
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.errors import DataError
from megatron_retrieval.testing.tiny import write_tiny_evidence
from megatron_retrieval.testing.tiny_sentencepiece import write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

FORMAT = TextFormatConfig(query_seq_length=12, retriever_seq_length=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_tiny_evidence(folder, num_distractors=30)
    (folder / "train.qa.csv").write_text(
        "where is key0\t['key1', 'key2', '  ']\nwhere is key3\t['']\nwhere is key4\t['room']\n"
    )
    return folder


def _questions(folder: Path, name: str = "train.qa.csv", *, exclude: bool = False, seed: int = 1) -> AskedQuestions:
    evidence = EvidenceStore(folder / "evidence")
    vocabulary, asked = evidence.vocabulary, AskedQuestionsConfig()
    source = QuestionSource(files=[str(folder / name)], asked=asked, retriever=vocabulary, reader=vocabulary)
    write_question_store(folder / f"questions-{name}", source)
    store = QuestionStore(folder / f"questions-{name}")
    return AskedQuestions(store, FORMAT, vocabulary, seed=seed, excluded_from=evidence if exclude else None)


def _targets(asked: AskedBatch, tokenizer: Vocabulary) -> list[str]:
    return tokenizer.decode([asked.targets[place].tolist() for place in range(len(asked))])


def test_questions_without_an_answer_are_left_out_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        asked = _questions(folder)
    assert [asked.store.question(row).answers for row in range(len(asked))] == [("key1", "key2"), ("room",)]
    assert "1 questions without answers are left out" in caplog.text
    assert "characters that the reader cannot write" not in caplog.text
    (folder / "braces.qa.csv").write_text("where is key0\t['{n}', 'key1', 'a{n}']\nwhere is key3\t['room']\n")
    with caplog.at_level("INFO"):
        _questions(folder, "braces.qa.csv")
    assert "2 answers with characters that the reader cannot write" in caplog.text
    (folder / "none.qa.csv").write_text("where is key3\t['']\n")
    with pytest.raises(DataError, match="no question has an answer to learn"):
        _questions(folder, "none.qa.csv")


def test_the_answer_is_drawn_by_seed_and_place_whatever_the_ranks(folder: Path) -> None:
    asked, tokenizer = _questions(folder), EvidenceStore(folder / "evidence").vocabulary
    drawn = {_targets(asked.batch([0, 1], epoch, 0), tokenizer)[0] for epoch in range(20)}
    assert drawn == {"key1", "key2"}
    for epoch in range(4):
        whole = asked.batch([1, 0], epoch, 6)
        parts = [asked.batch([1, 0], epoch, 6, rank, 2) for rank in range(2)]
        assert _targets(whole, tokenizer) == [_targets(part, tokenizer)[0] for part in parts]
        assert [part.num_questions for part in parts] == [2, 2]


def test_a_rank_without_questions_has_a_filler(folder: Path) -> None:
    share = _questions(folder).batch([1], 0, 0, 1, 2)
    assert share.is_filler
    assert (len(share), share.num_questions) == (1, 1)
    assert not _questions(folder).batch([1], 0, 0, 0, 2).is_filler


def test_the_passages_that_a_question_came_from_can_be_excluded(folder: Path) -> None:
    asked = _questions(folder, "biencoder.json", exclude=True)
    gold = json.loads((folder / "biencoder.json").read_text())[3]["positive_ctxs"][0]["passage_id"]
    batch = asked.batch([3], 0, 0)
    evidence = EvidenceStore(folder / "evidence")
    assert [evidence.passage(row).id for row in batch.excluded_rows[0].tolist()] == [gold]
    assert _questions(folder, "biencoder.json").batch([3], 0, 0).excluded_rows.shape == (1, 0)


@pytest.mark.parametrize("vocabulary", ["evidence's", "another"])
def test_texts_hold_question_title_and_passage(folder: Path, vocabulary: str) -> None:
    """Read from stored token ids, or tokenized anew; a question that nothing was found for is read alone."""
    evidence = EvidenceStore(folder / "evidence")
    words = ["where is the box of key0123456789 stands in room corner title"]
    tokenizer = (
        evidence.vocabulary
        if vocabulary == "evidence's"
        else SentencePieceTokenizer(write_sentencepiece(folder / "spiece.model", words * 20, model_type="char"))
    )
    layout = FusionLayout(
        FusionFormatConfig(question_prefix="where", title_prefix="the", passage_prefix="is"), tokenizer
    )
    texts = RetrievedTexts(evidence, layout, tokenizer, max_answer_length=4)
    rows = np.array([[5, 0, 5], [7, -1, -1], [-1, -1, -1]])
    batch, is_real = texts.texts(tokenize(tokenizer, ["where is key0", "room", "box"]), rows)
    assert is_real.tolist() == [[True] * 3, [True, False, False], [True, False, False]]

    def read(row: int) -> str:
        ids = batch.ids[row, : int(batch.lengths[row])].tolist()
        return " ".join(tokenizer.decode([ids])[0].split())

    def expected(question: str, row: int) -> str:
        passage = evidence.passage(row)
        return f"where {question} the {passage.title} is {passage.text}"

    assert read(0) == read(2) == expected("where is key0", 5)
    assert read(1) == expected("where is key0", 0)
    assert read(3) == expected("room", 7)
    assert read(6) == "where box"
    labels = texts.labels(tokenize(tokenizer, ["room", "in the corner of the room"]))
    assert (labels >= 0).sum(1).tolist() == [len(tokenizer.encode(["room"])[0][:3]) + 1, 4]
    assert torch.equal(labels[1, -1], torch.tensor(tokenizer.special.end))
