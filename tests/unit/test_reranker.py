"""The first passages found are reordered by their scores; those behind them stay there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_retrieval.retrieval.reranker import Reranker
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.search import SearchResult


class _Evidence:
    def passages(self, rows: Sequence[int]) -> list[Passage]:
        return [Passage(str(row), "", "") for row in rows]


def _scores(question: str, passages: Sequence[Passage]) -> torch.Tensor:
    return torch.tensor([{"1": -3.0, "9": 2.0}.get(passage.id, 0.5) for passage in passages])


def test_order_and_scores() -> None:
    reranker = Reranker(_scores, depth=4)
    rows = torch.tensor([[1, 7, 9, 3, 8, 0], [9, 1, -1, -1, -1, -1], [-1] * 6])
    inf = float("inf")
    scores = torch.tensor([[9.0, 8, 7, 6, 5.5, 4], [2.0, 1, -inf, -inf, -inf, -inf], [-inf] * 6])
    found = reranker.rerank(["a", "b", "c"], SearchResult(scores=scores, rows=rows), _Evidence(), 6)  # type: ignore[arg-type]
    # equal scores by row; behind the fourth the distances of the search, 0.5 and 1.5
    assert found.rows.tolist() == [[9, 3, 7, 1, 8, 0], [9, 1, -1, -1, -1, -1], [-1] * 6]
    assert found.scores.tolist()[0] == [2.0, 0.5, 0.5, -3.0, -3.5, -5.0]
    assert found.scores.tolist()[1:] == [[2.0, -3.0, -inf, -inf, -inf, -inf], [-inf] * 6]
    fewer = reranker.rerank(["a"], SearchResult(scores=scores[:1], rows=rows[:1]), _Evidence(), 2)  # type: ignore[arg-type]
    assert fewer.rows.tolist() == [[9, 3]]


def test_weighed_with_the_search() -> None:
    """Both scaled to 0 to 1 within the reordered: by hand, with half of each."""
    inf = float("inf")
    rows = torch.tensor([[7, 1, 9, 0], [3, -1, -1, -1]])
    scores = torch.tensor([[9.0, 8, 5, 4], [2.0, -inf, -inf, -inf]])
    reranker = Reranker(_scores, depth=3, weight=0.5)
    found = reranker.rerank(["a", "b"], SearchResult(scores=scores, rows=rows), _Evidence(), 4)  # type: ignore[arg-type]
    # 7: (1 + 0.7) / 2; 9: (0 + 1) / 2; 1: (0.75 + 0) / 2; row 0 is 1 below the last, as in the search
    assert found.rows.tolist() == [[7, 9, 1, 0], [3, -1, -1, -1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.85, 0.5, 0.375, -0.625], [1.0, -inf, -inf, -inf]]))
    assert reranker.protocol()["rerank_weight"] == 0.5
