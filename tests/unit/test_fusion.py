"""Two lists of passages in one: both kinds of fusion by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from megatron_retrieval.applications.search import SearchConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.retrieval.rank_fusion import RankFusionConfig, fuse, fused_depth
from megatron_retrieval.types.search import SearchResult

NOTHING = (-1, -math.inf)


def _result(*lists: list[tuple[int, float]]) -> SearchResult:
    rows, scores = ([[pair[part] for pair in found] for found in lists] for part in (0, 1))
    return SearchResult(scores=torch.tensor(scores, dtype=torch.float32), rows=torch.tensor(rows))


def test_weighted_sum_of_scaled_scores() -> None:
    dense = _result([(7, 4.0), (2, 3.0), (5, 2.0)], [(1, -1.0), (3, -2.0), NOTHING])
    lexical = _result([(5, 30.0), (9, 20.0), (7, 10.0), NOTHING], [NOTHING] * 4)
    fused = fuse(dense, lexical, RankFusionConfig(dense_weight=0.75), k=4)
    # first question: 7: 3/4 * 1 + 1/4 * 0, 2: 3/4 * 1/2, 5: 3/4 * 0 + 1/4 * 1, 9: 1/4 * 1/2
    assert fused.rows.tolist() == [[7, 2, 5, 9], [1, 3, -1, -1]]
    assert fused.scores.tolist() == [[0.75, 0.375, 0.25, 0.125], [0.75, 0.0, -math.inf, -math.inf]]
    assert fused.scores.dtype == torch.float32


def test_reciprocal_ranks() -> None:
    dense = _result([(7, 4.0), (2, 3.0), (5, 2.0)])
    lexical = _result([(5, 3.0), (7, 2.0), NOTHING])
    fused = fuse(dense, lexical, RankFusionConfig(fusion="rrf", rrf_k=1), k=3)
    assert fused.rows.tolist() == [[7, 5, 2]]
    assert fused.scores.tolist()[0] == pytest.approx([0.5 / 2 + 0.5 / 3, 0.5 / 4 + 0.5 / 2, 0.5 / 3])


def test_equal_scores_are_ordered_by_row_and_equal_lists_count_as_best() -> None:
    dense, lexical = _result([(4, 2.0), (3, 2.0)]), _result([(1, 5.0), NOTHING])
    fused = fuse(dense, lexical, RankFusionConfig(), k=2)
    assert fused.rows.tolist() == [[1, 3]]
    assert fused.scores.tolist() == [[0.5, 0.5]]


def test_no_questions() -> None:
    nothing = SearchResult(scores=torch.empty(0, 3), rows=torch.empty(0, 3, dtype=torch.int64))
    assert fuse(nothing, nothing, RankFusionConfig(), k=2).rows.shape == (0, 2)


def test_depth_is_at_least_what_is_asked_for() -> None:
    assert [fused_depth(RankFusionConfig(fusion_depth=50), k) for k in (10, 50, 80)] == [50, 50, 80]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dense_weight": 1.5}, "--dense-weight"), ({"rrf_k": -1.0}, "--rrf-k"), ({"fusion_depth": 0}, "--fusion-depth")],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RankFusionConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "Nothing to search with"),
        (("retriever",), "--embeddings and --retriever belong together"),
        (("embeddings", "bm25_index"), "--embeddings and --retriever belong together"),
    ],
)
def test_what_a_search_needs(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(evidence=Path("e"), **{name: Path(name) for name in given})  # type: ignore[arg-type]
