"""From a folder of documents to a folder that is searched; stopped anywhere, and run again after documents changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_retrieval.applications.learn import adapt, learn, written
from megatron_retrieval.applications.learn import encoder as learned_encoder
from megatron_retrieval.applications.learn.config import AdaptConfig, LearnConfig
from megatron_retrieval.applications.learn.folder import LearnedFolder
from megatron_retrieval.applications.learn.measure import hold_out_sentences, is_better
from megatron_retrieval.applications.search import SearchConfig, open_search
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.data.documents.cutting import CutConfig
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.evaluation.predictions import Prediction
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.questions import Passage

TINY = tiny_dual_encoder_config(shared=True)
TINY = replace(TINY, encoder=replace(TINY.encoder, max_position_embeddings=32))  # room for two sentences
WORDS = "the a box of is in room stands on and key lamp red blue green old new . one two three four five six".split()


@pytest.fixture(scope="module")
def topology() -> Iterator[ProcessTopology]:
    with process_topology(ParallelConfig(device="cpu")) as made:
        yield made


@pytest.fixture(scope="module")
def encoder(topology: ProcessTopology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random dual encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    lengths = TextFormatConfig(query_seq_length=16, retriever_seq_length=32)
    model, vocabulary = DualEncoder(TINY, topology, seed=1), WordPieceTokenizer(folder / "vocab.txt")
    DUAL_ENCODER.save(folder / "checkpoint", model, topology, TINY, vocabulary, lengths)
    return folder / "checkpoint"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Documents of a few passages each."""
    folder = tmp_path / "docs"
    folder.mkdir()
    words = [word for word in WORDS if word != "."]
    for number in range(8):
        sentences = [
            " ".join(words[(number * 7 + row * row + place * place) % len(words)] for place in range(7))
            for row in range(5)
        ]
        text = ". ".join(sentence.capitalize() for sentence in [*sentences, f"the key {number} is in the old room"])
        (folder / f"d{number}.txt").write_text(f"{text}.\n")
    (folder / "rows.csv").write_text("title,text\nOne,The red box stands.\nTwo,The blue box stands.\n")
    return folder


def _config(docs: Path, encoder: Path | None, output: Path | None = None, **settings: Any) -> LearnConfig:
    adaptation = AdaptConfig(adapt_batch_size=4, **{"adapt_steps": 2, "scratch_steps": 2, **settings})
    return LearnConfig(
        folder=docs, output=output, encoder=encoder, cutting=CutConfig(passage_words=15), adaptation=adaptation
    )


def _vectors(learned: LearnedFolder) -> dict[str, bytes]:
    evidence, store = EvidenceStore(learned.evidence), EmbeddingStore(learned.embeddings)
    vectors = store.vectors(0, len(store))
    return {evidence.passage(row).id: vectors[row].view(torch.uint8).numpy().tobytes() for row in range(len(evidence))}


def _report(learned: LearnedFolder) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((learned.version / "report.json").read_text())
    return report


def test_only_what_changed_is_embedded(docs: Path, encoder: Path, topology: ProcessTopology, tmp_path: Path) -> None:
    config = _config(docs, encoder)
    learn.main(config, topology)
    before = LearnedFolder.open(config.learned)
    num_passages = len(EvidenceStore(before.evidence))
    assert _report(before)["passages_embedded"] == num_passages
    assert before.documents == docs
    assert EvidenceStore(before.evidence).rows_of(["rows.csv#row=2&passage=2"]) == [num_passages - 1]

    learn.main(config, topology)
    assert LearnedFolder.open(config.learned) == before
    assert _report(before) | {"seconds": 0} == {
        "documents": 9, "documents_read": 0, "passages": num_passages, "passages_embedded": 0, "seconds": 0,
        "adaptation": {},
    }  # fmt: skip

    (docs / "d0.txt").unlink()
    (docs / "sub").mkdir()
    (docs / "d1.txt").rename(docs / "sub" / "d1.txt")
    shutil.copy(docs / "d2.txt", docs / "copy of d2.txt")
    with (docs / "rows.csv").open("a") as file:
        file.write("Three,The green box is old and new.\n")
    learn.main(config, topology)
    after = LearnedFolder.open(config.learned)
    assert _report(after)["documents_read"] == 1
    assert _report(after)["passages_embedded"] == 1
    session = open_search(SearchConfig(evidence=config.learned), EncodeConfig(), topology)
    ((passage, _),) = session.by("bm25").search(["which box is green and old"], 1)[0]
    assert passage.id == "rows.csv#row=3&passage=3"
    with pytest.raises(ConfigError, match="has vectors and words of its own"):
        open_search(SearchConfig(evidence=config.learned, bm25_index=after.bm25_index), EncodeConfig(), topology)
    told = json.loads((after.version / "documents.json").read_text())
    assert {"file": "d2.txt", "same_as": ["copy of d2.txt"]} in told["documents"]
    fresh = _config(docs, encoder, tmp_path / "fresh")
    learn.main(fresh, topology)
    assert _vectors(after) == _vectors(LearnedFolder.open(fresh.learned))
    assert before.evidence.exists(), "a server may have the version before open"
    parsed = {file.name for file in (config.learned / "parsed").glob("*/*")}
    assert parsed == {file.name for file in (fresh.learned / "parsed").glob("*/*")}


STAGES = ("read_documents", "given_encoder", "write_passages", "build_lexical_index", "adapted_encoder", "embed")


@pytest.mark.parametrize(("stage", "is_late"), zip(STAGES, [True, False] * 3, strict=True))
def test_stopped_anywhere(
    stage: str, is_late: bool, docs: Path, encoder: Path, topology: ProcessTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, work = _config(docs, encoder, adapt=("ict",)), getattr(learn, stage)

    def stop(*args: Any, **settings: Any) -> None:
        if is_late:
            work(*args, **settings)
        raise SystemExit(143)

    with monkeypatch.context() as patched:
        patched.setattr(learn, stage, stop)
        with pytest.raises(SystemExit):
            learn.main(config, topology)
    assert LearnedFolder.at(config.learned) is None
    learn.main(config, topology)
    assert _report(LearnedFolder.open(config.learned))["passages"] == len(_vectors(LearnedFolder.open(config.learned)))


@pytest.mark.parametrize("is_kept", [False, True])
def test_an_adapted_encoder_is_kept_if_it_finds_more(
    is_kept: bool, docs: Path, encoder: Path, topology: ProcessTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "is_better", lambda before, after: (is_kept, {"mrr": 0.0, "low": 0.0, "high": 0.0}))
    monkeypatch.setattr(adapt, "_LEAST_QUESTIONS", 1)
    config = _config(docs, encoder, adapt=("ict-mean",))
    learn.main(config, topology)
    learned = LearnedFolder.open(config.learned)
    decision = _report(learned)["adaptation"]
    assert [(tried["way"], tried["kept"]) for tried in decision["tries"]] == [("ict-mean", is_kept)]
    given, used = (DUAL_ENCODER.describe(path) for path in (encoder, learned.retriever))
    assert (given.fingerprint != used.fingerprint) == is_kept
    EmbeddingStore(learned.embeddings).require(encoder_fingerprint=used.fingerprint)
    left = {path.name for path in config.learned.glob("runs/*/*/*")}
    assert left == {"1-ict-mean", "questions.json"}, "checkpoints and stores of the adaptation are removed"

    monkeypatch.setattr(adapt.Trial, "decide", None)
    (docs / "d0.txt").unlink()
    learn.main(config, topology)
    assert LearnedFolder.open(config.learned).retriever == learned.retriever, (
        "one adaptation serves until it is removed"
    )


def test_masked_spans_teach_the_encoder_of_questions(
    docs: Path, encoder: Path, topology: ProcessTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "is_better", lambda before, after: (True, {"mrr": 0.0, "low": 0.0, "high": 0.0}))
    monkeypatch.setattr(adapt, "_LEAST_QUESTIONS", 1)
    for number in range(8):  # names, in sentences of eight words and more
        with (docs / f"d{number}.txt").open("a") as file:
            file.write(f"In May 199{number} the red box of Key Lamp stands in the old room.\n")
    config = _config(docs, encoder, adapt=("masked-spans",))
    learn.main(config, topology)
    learned = LearnedFolder.open(config.learned)
    assert [tried["way"] for tried in _report(learned)["adaptation"]["tries"]] == ["masked-spans"]
    before, after = (DUAL_ENCODER.describe(path) for path in (encoder, learned.retriever))
    given, taught = (found.load(topology) for found in (before, after))
    for name in ("query", "passage"):
        towers = [model.tower_of(name).parameters() for model in (given, taught)]
        is_kept = all(torch.equal(*both) for both in zip(*towers, strict=True))
        assert is_kept == (name == "passage"), "the encoder of questions learns, that of passages does not"


def test_questions_of_the_user(
    docs: Path, encoder: Path, topology: ProcessTopology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adapt, "_LEAST_QUESTIONS", 1)
    questions = tmp_path / "questions.csv"
    rows = [f"where is the key {number}\t['key {number}']\n" for number in range(8)]
    questions.write_text("".join(rows))
    config = _config(docs, encoder, questions=questions)
    learn.main(config, topology)
    decision = _report(LearnedFolder.open(config.learned))["adaptation"]
    assert (decision["held_out"], decision["num_held_out"]) == ("questions", 2)
    assert [tried["way"] for tried in decision["tries"]] == ["questions"]


def test_questions_that_cannot_be_judged_by_are_said_before_training(
    docs: Path, encoder: Path, topology: ProcessTopology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adapt, "_LEAST_QUESTIONS", 1)
    questions = tmp_path / "questions.jsonl"
    records = [{"query": f"where is the key {n}", "pos": [f"The key {n} is in the old room."]} for n in range(8)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))  # neither answers nor ids
    said: list[str] = []
    monkeypatch.setattr(adapt.log, "warning", lambda text, *values: said.append(text % values))
    config = _config(docs, encoder, questions=questions)
    learn.main(config, topology)
    decision = _report(LearnedFolder.open(config.learned))["adaptation"]
    assert (decision["num_held_out"], decision["tries"]) == (2, [])
    assert "of 2 held-out questions only 0 name an answer" in said[0]


def test_written_questions_teach_if_they_find_their_passage(
    docs: Path, encoder: Path, topology: ProcessTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer:
        reader: Any

        def answer(self, questions: list[ReaderQuestion]) -> list[Prediction]:
            (passages,) = zip(*(question.passages for question in questions), strict=True)
            asked.extend(passage.id for passage in passages)
            if len(asked) > 8:
                raise SystemExit(143)
            return [Prediction(f"{passage.id} is where", 0.0, 0) for passage in passages]

    class Search:
        def search(self, questions: list[str], k: int) -> list[list[tuple[Passage, float]]]:
            ids = [question.split()[0] for question in questions]
            return [[(Passage(name if name.startswith("d1") else "other", "", ""), 1.0)] for name in ids]

    def search(config: SearchConfig, *_: Any) -> Search:
        assert config.options.rerank.rerank == encoder
        return Search()

    asked: list[str] = []
    writer = Writer()
    writer.reader = writer
    monkeypatch.setattr(adapt, "_LEAST_QUESTIONS", 1)
    monkeypatch.setattr(written, "_BLOCK", 4)
    monkeypatch.setattr(written, "open_reader", lambda *args, **settings: writer)
    monkeypatch.setattr(written, "open_search", search)
    models = {"question_writer": encoder, "question_reranker": encoder}
    config = _config(docs, encoder, adapt=("written-questions",), adapt_steps=9, **models)
    with pytest.raises(SystemExit):
        learn.main(config, topology)
    first = asked[:8]
    asked.clear()
    monkeypatch.setattr(Writer, "answer", lambda _, questions: [Prediction("no", 0.0, 0) for _ in questions])
    learn.main(config, topology)
    (data,) = config.learned.glob("runs/*/*/1-written-questions/written.json")
    questions = list(read_questions(data))
    assert first
    assert {question.gold_passage_ids[0] for question in questions} == {name for name in first if name.startswith("d1")}
    assert {question.text for question in questions} == {f"{name} is where" for name in first if name[:2] == "d1"}


def test_an_encoder_from_nothing(docs: Path, topology: ProcessTopology) -> None:
    config = _config(docs, None)
    learn.main(config, topology)
    learned = LearnedFolder.open(config.learned)
    vocabulary = DUAL_ENCODER.describe(learned.retriever).vocabulary()
    assert vocabulary.special.unknown not in vocabulary.encode(["the lamp stands in the room"])[0]
    learn.main(config, topology)
    assert LearnedFolder.open(config.learned).retriever == learned.retriever


def test_held_out_sentences(tmp_path: Path) -> None:
    passages = [
        Passage(
            f"{number}", "T", f"Here is sentence {number} about one thing. Another sentence of {number} comes after it."
        )
        for number in range(100)
    ]
    passages[3] = Passage("3", "T", "Too short.")
    files = hold_out_sentences(passages, tmp_path, most=50, language="en", seed=1)
    searched = {passage.id: passage for _, passage in read_passages(files.passages)}
    questions = list(read_questions(files.questions))
    assert len(searched) == 100
    assert len(questions) == files.num_questions
    assert 8 <= len(questions) <= 10
    held = {question.gold_passage_ids[0]: question.text for question in questions}
    for name, sentence in held.items():
        before = passages[int(name)].text
        assert sorted([sentence, searched[name].text]) == sorted(before.replace(". A", ".\nA").split("\n"))
    assert {passage.id for _, passage in read_passages(files.rest)} == searched.keys() - held.keys()


def test_better_is_more_than_chance() -> None:
    before = np.array([1, 2, 0, 4] * 50)
    assert not is_better(before, before)[0]
    assert not is_better(before, np.concatenate([[1, 1], before[2:]]))[0]
    assert is_better(before, np.ones(200, np.int64))[0]
    assert not is_better(np.ones(200, np.int64), before)[0]


def test_refusals(docs: Path, encoder: Path, topology: ProcessTopology, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("dear to me")
    with pytest.raises(DataError, match="learn did not make it"):
        learn.main(_config(docs, encoder, tmp_path / "mine"), topology)
    with pytest.raises(DataError, match="there is no such folder"):
        learn.main(_config(tmp_path / "docz", encoder), topology)
    assert not (tmp_path / "docz.learned").exists()
    with pytest.raises(ConfigError, match=r"--encoder .*there is no such folder"):
        learn.main(_config(docs, tmp_path / "none", tmp_path / "a"), topology)
    with pytest.raises(ConfigError, match=r"--encoder .*no encoder is there"):
        learn.main(_config(docs, docs, tmp_path / "b"), topology)


def test_models_of_one_name_are_told_apart_by_their_contents(
    topology: ProcessTopology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(learned_encoder, "import_model", lambda kind, sources, output, topology: None)
    models = [tmp_path / name / "final" for name in ("a", "b", "copy of a")]
    for model, size in zip(models, (1, 2, 1), strict=True):
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": size}))
    first, second, copy = (learned_encoder.imported(model, tmp_path / "writers", topology) for model in models)
    assert first == copy != second
    assert {path.parent for path in (first, second)} == {tmp_path / "writers"}
