"""BM25: its words, its scores by hand, the order of equal scores, and indexes that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.index.bm25 import LexicalConfig, LexicalIndex, _best_rows, build_lexical_index
from megatron_retrieval.tokenizers.words import WordAnalyzer, WordConfig
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.manifest import MANIFEST

#: lengths with title 4, 3, 4, 1 and without 3, 2, 3, 1, so 3 or 9/4 on average
TEXTS = [("oslo", "rain rain snow"), ("lima", "rain sun"), ("oslo", "rain rain snow"), ("", "bern")]


def _build(folder: Path, texts: Sequence[tuple[str, str]] = TEXTS, **settings: object) -> LexicalIndex:
    passages = [Passage(str(row), title, text) for row, (title, text) in enumerate(texts)]
    build_lexical_index(passages, len(passages), LexicalConfig(**settings), "evidence one", folder)  # type: ignore[arg-type]
    return LexicalIndex(folder)


@pytest.mark.parametrize(
    ("settings", "text", "stems"),
    [
        ({}, "The Running of the DOGS", ["run", "dog"]),
        ({}, "O'Brien's 3.5 U.S. dollars, e.g. £4", ["o'brien", "3.5", "u.", "dollar", "e.g", "4"]),
        ({"stemmer": "none", "stop_words": False}, "The dog’s  naïve—été", ["the", "dog’s", "naïve", "été"]),
        ({"stemmer": "german", "stop_words": False}, "Die Häuser", ["die", "haus"]),
        ({}, "?! ...", []),
    ],
)
def test_words(settings: dict[str, object], text: str, stems: list[str]) -> None:
    assert WordAnalyzer(WordConfig(**settings)).stems(text) == stems  # type: ignore[arg-type]


def test_scores_are_those_of_the_formula(tmp_path: Path) -> None:
    index = _build(tmp_path / "bm25", bm25_k1=1.2, bm25_b=0.75)
    result = index.search(["Rain and raining sun?", "nothing known", "bern"], 3)

    def score(num_with: int, times: int, length: int) -> float:
        idf = math.log(1 + (4 - num_with + 0.5) / (num_with + 0.5))
        return idf * times / (times + 1.2 * (1 - 0.75 + 0.75 * length / 3))

    # "rain" is asked for twice
    lima, oslo = 2 * score(3, 1, 3) + score(1, 1, 3), 2 * score(3, 2, 4)
    assert lima > oslo
    assert result.rows.tolist() == [[1, 0, 2], [-1, -1, -1], [3, -1, -1]]
    assert result.scores[0].tolist() == pytest.approx([lima, oslo, oslo], rel=1e-6)
    assert result.scores[1].tolist() == [-math.inf] * 3
    assert result.scores[2].tolist() == pytest.approx([score(1, 1, 1), -math.inf, -math.inf], rel=1e-6)


def test_titles_count_where_they_are_indexed(tmp_path: Path) -> None:
    asked = ["oslo"]
    assert _build(tmp_path / "with").search(asked, 4).rows.tolist() == [[0, 2, -1, -1]]
    assert _build(tmp_path / "without", index_titles=False).search(asked, 4).rows.tolist() == [[-1] * 4]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 12))
def test_best_rows_are_those_of_a_sort(values: list[int], k: int) -> None:
    rows = _best_rows(np.array(values, np.float32), k)
    expected = sorted((row for row, value in enumerate(values) if value), key=lambda row: (-values[row], row))
    assert rows.tolist() == expected[:k]


def test_index_of_another_evidence_is_refused(tmp_path: Path) -> None:
    index = _build(tmp_path / "bm25")
    index.require("evidence one")
    with pytest.raises(MismatchError, match="is of evidence evidence one, but the evidence given is evidence two"):
        index.require("evidence two")


def test_unfinished_and_damaged_indexes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no BM25 index here"):
        LexicalIndex(tmp_path)
    folder = _build(tmp_path / "bm25").folder
    with pytest.raises(DataError, match="exists already"):
        _build(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (cut := folder / "data.csc.index.npy").write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"data\.csc\.index\.npy: has [\d,]+ bytes instead of"):
        LexicalIndex(folder)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format_version": 9}))
    with pytest.raises(DataError, match="has format version 9 of a BM25 index"):
        LexicalIndex(folder)
    (folder / MANIFEST).write_text(json.dumps({"format_version": 1}))
    with pytest.raises(DataError, match="damaged, or not the manifest of a BM25 index"):
        LexicalIndex(folder)


def test_nothing_is_left_of_a_build_that_fails(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no passage has a word"):
        _build(tmp_path / "bm25", [("", "the !"), ("", "?")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bm25_k1": -1.0}, "--bm25-k1"), ({"bm25_b": 1.5}, "--bm25-b")],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LexicalConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--stemmer klingon: choose one of .*porter.* none"):
        WordConfig(stemmer="klingon")
