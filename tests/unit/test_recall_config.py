"""Which questions and passages recall is measured on, and what is refused before training starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_sample import EvidenceSample, spread_rows
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.testing.tiny import write_tiny_evidence
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.training.tasks.recall_task import RecallConfig, RecallTask

SHORT = TextFormatConfig(passage_format="title-text", retriever_seq_length=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_evidence(folder, num_distractors=40)
    return folder


def _open(folder: Path, tokenizer: WordPieceTokenizer, **settings: Any) -> RecallTask | None:
    files = {"eval_questions": str(folder / "biencoder.json"), "eval_evidence": str(folder / "evidence")}
    return RecallConfig(**{**files, **settings}).open(cast(Any, None), TextFormatConfig(), tokenizer)


@pytest.mark.parametrize(("num_rows", "wanted"), [(10, 3), (10, 9), (7, 7), (7, None), (7, 100), (1, 1)])
def test_rows_are_spread_from_the_first_on(num_rows: int, wanted: int | None) -> None:
    rows = spread_rows(num_rows, wanted)
    steps = np.diff(rows)
    assert len(rows) == min(num_rows, wanted or num_rows)
    assert rows[0] == 0
    assert rows[-1] < num_rows
    assert len(set(steps.tolist())) <= 2
    assert (steps > 0).all()


def test_sample_is_evidence_with_rows_of_its_own(folder: Path) -> None:
    store = EvidenceStore(folder / "evidence")
    sample = EvidenceSample(store, 20)
    rows = spread_rows(len(store), 20)
    assert len(sample) == 20
    assert sample.passages([0, 7, 19]) == store.passages(rows[[0, 7, 19]])
    ids = [passage.id for passage in store.passages(range(len(store)))]
    expected = [rows.tolist().index(row) if row in rows else -1 for row in range(len(store))]
    assert sample.rows_of([*ids, "unknown"]).tolist() == [*expected, -1]
    mine, whole = sample.tokens([3, 5], SHORT), store.tokens(rows[[3, 5]], SHORT)
    assert mine.ids.equal(whole.ids)
    assert mine.lengths.equal(whole.lengths)


def test_nothing_is_measured_without_questions(folder: Path) -> None:
    assert _open(folder, WordPieceTokenizer(folder / "vocab.txt"), eval_questions=None, eval_evidence=None) is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"eval_questions": None}, "--eval-questions and --eval-evidence belong together"),
        ({"eval_evidence": None}, "--eval-questions and --eval-evidence belong together"),
        ({"eval_max_passages": 0}, "--eval-max-passages 0: must be at least 1"),
        ({"eval_max_questions": -1}, "--eval-max-questions -1: must be at least 1"),
        ({"eval_micro_batch_size": 0}, "--eval-micro-batch-size 0: must be at least 1"),
        ({"eval_topk": (5, 0)}, "--eval-topk 5 0: must be at least 1"),
        ({"eval_embeddings": "vectors", "eval_max_passages": 3}, "--eval-embeddings are of all of --eval-evidence"),
        ({"eval_topk": ()}, r"--eval-topk \(nothing\): must be at least 1"),
    ],
)
def test_bad_settings(folder: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _open(folder, WordPieceTokenizer(folder / "vocab.txt"), **settings)


def test_missing_and_damaged_files(folder: Path, tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer(folder / "vocab.txt")
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read"):
        _open(folder, tokenizer, eval_questions=str(tmp_path / "absent.csv"))
    with pytest.raises(DataError, match="absent: no evidence here"):
        _open(folder, tokenizer, eval_evidence=str(tmp_path / "absent"))
    (tmp_path / "bad.qa.csv").write_text("who?\t['x']\nwhere?\n")
    with pytest.raises(DataError, match=r"bad\.qa\.csv:2: expected 2 fields"):
        _open(folder, tokenizer, eval_questions=str(tmp_path / "bad.qa.csv"))


def test_evidence_of_another_vocabulary(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "vocab.txt", tmp_path / "vocab.txt")
    with open(tmp_path / "vocab.txt", "a") as file:
        file.write("another\n")
    with pytest.raises(MismatchError, match=r"was tokenized with vocabulary .* but the model in training has"):
        _open(folder, WordPieceTokenizer(tmp_path / "vocab.txt"))
