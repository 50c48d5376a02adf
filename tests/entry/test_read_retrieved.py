"""A reader that is given a retriever, and late interaction that reranks, answers as from their results, whatever the
layout of ranks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from programs import command, refuse, succeed

from megatron_retrieval.applications.questions_to_read import PassageSearchConfig, QuestionsToReadConfig, open_questions
from megatron_retrieval.applications.search import SearchConfig, open_search
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, QuestionCensus
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.index.bm25 import LexicalConfig, build_lexical_index
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.late_interaction import LateInteraction, LateInteractionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.testing.embedded import embed
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

RETRIEVE, READ = (("tasks/main.py", "--task", name) for name in ("retriever-evaluate", "qa-evaluate"))
NUM_PASSAGES = 5
TINY = tiny_dual_encoder_config()
#: weights so large that every word tells in what a random model finds
SHAPE = dataclasses.replace(TINY, encoder=dataclasses.replace(TINY.encoder, init_method_std=1.0))
READER = dataclasses.replace(SHAPE.encoder, max_position_embeddings=32)
LAYOUT = ExtractiveFormatConfig(question_seq_length=8, reader_seq_length=READER.max_position_embeddings)


def _prepare(topology: ProcessTopology, folder: str) -> None:
    """A random retriever with the embeddings of its evidence, late interaction, and a random reader."""
    root = Path(folder)
    text_format = text_format_within(TextFormatConfig(), SHAPE.encoder)
    vocabulary = WordPieceTokenizer(root / "vocab.txt")
    encoder = DualEncoder(SHAPE, topology, seed=1)
    DUAL_ENCODER.save(root / "retriever", encoder, topology, SHAPE, vocabulary, text_format)
    shape, layout = LateInteractionConfig(encoder=SHAPE.encoder), LateFormatConfig(**vars(text_format))
    late = LateInteraction(shape, topology, seed=1)
    LATE_INTERACTION.save(root / "late", late, topology, shape, vocabulary, layout)
    reader = ExtractiveReader(READER, topology, seed=2)
    EXTRACTIVE_READER.save(root / "reader", reader, topology, READER, vocabulary, LAYOUT)
    embed(topology, root / "evidence", root / "retriever", root / "embeddings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, some of them wanting, what one process retrieves for them, and what is answered from that."""
    folder = tmp_path_factory.mktemp("retrieved")
    write_tiny_evidence(folder, num_distractors=0)
    records = json.loads((folder / "biencoder.json").read_text())
    records[2]["answers"], records[3]["answers"] = [" ", "key2"], []
    (folder / "questions.json").write_text(json.dumps(records))
    run_on_ranks(_prepare, 1, str(folder))
    words = [*RETRIEVE, *_searched(folder), "--questions", folder / "questions.json", "--topk", NUM_PASSAGES]
    succeed(command(*words, "--output-dir", folder / "results", "--strip-question-mark"))
    succeed(_read(folder, "expected", "--questions", folder / "results" / "results.json"))
    return folder


def _searched(folder: Path) -> list[object]:
    return [
        "--evidence",
        folder / "evidence",
        "--embeddings",
        folder / "embeddings",
        "--retriever",
        folder / "retriever",
        "--rerank",
        folder / "late",
        "--rerank-topk",
        NUM_PASSAGES,
    ]


def _read(folder: Path, name: str, *words: object, num_processes: int = 1) -> list[str]:
    settings = ["--reader", folder / "reader", "--num-passages", NUM_PASSAGES, "--output-dir", folder / name]
    return command(*READ, *settings, *words, num_processes=num_processes)


def _outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tp_size", [1, 2], ids=["DP 2", "TP 2"])
def test_answers_are_those_from_the_retrievers_results(folder: Path, tp_size: int) -> None:
    name = f"read-tp{tp_size}"
    words = [*_searched(folder), "--questions", folder / "questions.json", "--strip-question-mark"]
    words += ["--tensor-model-parallel-size", tp_size, "--verify-embeddings"]
    succeed(_read(folder, name, *words, num_processes=2))
    metrics, predictions = _outcome(folder / name)
    expected_metrics, expected = _outcome(folder / "expected")
    assert len({prediction["prediction"] for prediction in expected}) > 5
    if tp_size > 1:  # sums over two ranks round otherwise
        scores = [prediction.pop("score") for prediction in predictions]
        assert scores == pytest.approx([prediction.pop("score") for prediction in expected], abs=1e-4)
    assert predictions == expected
    asked = ("questions", "strip_question_mark")
    assert {name: metrics[name] for name in expected_metrics if name not in asked} == {
        name: value for name, value in expected_metrics.items() if name not in asked
    }
    assert (metrics["num_blank_answers"], metrics["num_questions_without_answers"]) == (1, 1)

    retrieved = json.loads((folder / "results" / "metrics.json").read_text())
    recall = f"recall@{NUM_PASSAGES}"
    assert 0 < retrieved[recall] < 1
    fingerprints = ("evidence_fingerprint", "encoder_fingerprint", "reranker_fingerprint")
    for key in (recall, f"{recall}_ci95", f"gold_{recall}", "answer_match", *fingerprints):
        assert metrics[key] == retrieved[key]
    assert metrics["num_evidence_passages"] == retrieved["num_passages"]
    assert f"answer {recall}" in (folder / name / "examples.html").read_text()


def _found_by_both(topology: ProcessTopology, folder: str) -> list[Any]:
    """What there is to read, and what the search of its own finds."""
    root, encode = Path(folder), EncodeConfig()
    evidence = EvidenceStore(root / "evidence")
    passages = map(evidence.passage, range(len(evidence)))
    build_lexical_index(passages, len(evidence), LexicalConfig(), evidence.fingerprint, root / "bm25")
    places = {"evidence": root / "evidence", "embeddings": root / "embeddings", "bm25_index": root / "bm25"}
    config = QuestionsToReadConfig(
        questions=root / "biencoder.json",
        reading=PassagesToReadConfig(num_passages=NUM_PASSAGES),
        search=PassageSearchConfig(retriever=root / "retriever", **places),
    )
    opened = open_questions(config, encode, topology)
    questions = list(opened.read(QuestionCensus()))
    session = open_search(SearchConfig(retriever=root / "retriever", **places), encode, topology)
    found = session.search([question.text for question in questions], NUM_PASSAGES)
    read = [zip(question.passages, question.scores, strict=True) for question in questions]
    ids = [[[(passage.id, score) for passage, score in hits] for hits in lists] for lists in (read, found)]
    return [*ids, opened.retrieval_metrics]


def test_a_reader_reads_what_encoder_and_words_find(folder: Path) -> None:
    ((read, found, metrics),) = run_on_ranks(_found_by_both, 1, str(folder))
    assert read == found
    assert len(read[0]) == NUM_PASSAGES
    assert (metrics["fusion"], metrics["bm25_k1"]) == ("weighted", 0.9)
    assert metrics["encoder_fingerprint"]


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    """The retriever's evidence is another than that of the embeddings."""
    (tmp_path / "other").mkdir()
    write_tiny_evidence(tmp_path / "other", num_distractors=30)
    words = [*_searched(folder), "--questions", folder / "questions.json"]
    words += ["--evidence", tmp_path / "other" / "evidence", "--output-dir", tmp_path / "out"]
    refuse(_read(folder, "unused", *words), "are of evidence")
    assert not (tmp_path / "out").exists()
