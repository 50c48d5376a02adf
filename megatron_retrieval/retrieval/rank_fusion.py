"""One list of passages out of two, of a dense and of a lexical search; a pure function of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, Fraction, NonNegativeFloat, PositiveInt
from megatron_retrieval.index.exact.pair_scores import best_of_pairs
from megatron_retrieval.types.search import SearchResult


@dataclass(kw_only=True, frozen=True)
class RankFusionConfig(Checked):
    """Fusion of dense search and BM25, where both are given."""

    fusion: Literal["weighted", "rrf"] = "weighted"
    """weighted: weighted sum of scores, each scaled to 0 to 1 within its list. rrf: reciprocal rank fusion, sum of
    1 / (k + rank) (Cormack et al. 2009). A list gives 0 to passages that it lacks."""
    dense_weight: Fraction = 0.5
    """Weight of the dense search, from 0 to 1, for both kinds of fusion; the weight of BM25 is the rest."""
    rrf_k: NonNegativeFloat = 60.0
    """Constant k of reciprocal rank fusion; a larger one flattens the differences between ranks."""
    fusion_depth: PositiveInt = 200
    """Passages taken from each list; at least as many as are asked for."""


def fuse(dense: SearchResult, lexical: SearchResult, config: RankFusionConfig, k: int) -> SearchResult:
    """The k best passages for each of B questions out of two lists.

    Args:
        dense: [B, any number].
        lexical: [B, any number], on the same device.

    Returns:
        scores [B, k] and rows [B, k]; equal scores are ordered by row; row -1 and score -inf where fewer are found.
    """
    value = _reciprocal_ranks if config.fusion == "rrf" else _scaled_list
    lists = ((dense, config.dense_weight), (lexical, 1 - config.dense_weight))
    query_index, rows, values = (
        torch.cat(parts)
        for parts in zip(*(_pairs(result, weight * value(result, config)) for result, weight in lists), strict=True)
    )
    num_rows = int(rows.max()) + 1 if len(rows) else 1
    pairs, place = torch.unique(query_index * num_rows + rows, return_inverse=True)
    sums = values.new_zeros(len(pairs)).index_add_(0, place, values)
    return best_of_pairs(pairs // num_rows, sums.float(), pairs % num_rows, len(dense.rows), k)


def fused_depth(config: RankFusionConfig, k: int) -> int:
    """Passages to retrieve from either search for a list of k."""
    return max(config.fusion_depth, k)


def _pairs(result: SearchResult, values: Tensor) -> Sequence[Tensor]:
    """(query, row, value) of everything found."""
    query_index, column = (result.rows >= 0).nonzero(as_tuple=True)
    return query_index, result.rows[query_index, column], values[query_index, column]


def _reciprocal_ranks(result: SearchResult, config: RankFusionConfig) -> Tensor:
    """[B, K] float64; the column is the rank."""
    ranks = torch.arange(1, result.rows.size(1) + 1, device=result.rows.device, dtype=torch.float64)
    return (1 / (config.rrf_k + ranks)).expand(result.rows.shape)


def _scaled_list(result: SearchResult, config: RankFusionConfig) -> Tensor:
    return scaled(result.scores, result.rows >= 0)


def scaled(scores: Tensor, found: Tensor) -> Tensor:
    """[..., K] float64: the best of a list that was found is 1, the last is 0; where all are equal, all are 1."""
    scores = scores.double()
    best = scores.masked_fill(~found, -torch.inf).amax(-1, keepdim=True)
    span = best - scores.masked_fill(~found, torch.inf).amin(-1, keepdim=True)
    return torch.where(span > 0, 1 - (best - scores) / span, 1.0)
