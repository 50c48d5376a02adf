"""What a chunk has in common with what was retrieved for it (Borgeaud et al. 2022, arXiv 2112.04426, section 2.6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.stores.ragged import Rows

#: pairs of tokens that are compared at once
_PAIRS_AT_ONCE = 1 << 22


def shared_runs(chunks: Rows, is_token: NDArray[np.bool_], values: Rows, is_value: NDArray[np.bool_]) -> Rows:
    """The length of the longest run of tokens that a chunk shares with each of its neighbours, in tokens.

    The evaluation leaves out chunks of which the retrieved text holds too much: those with r(C) > alpha, r(C) being the
    greatest of these lengths over m.

    Args:
        chunks: [n, m] token ids.
        is_token: [n, m] where there are some.
        values: [n, K, r] token ids of the neighbours.
        is_value: [n, K, r] where there are some.

    Returns:
        [n, K] int64.
    """
    at_once = max(1, _PAIRS_AT_ONCE // max(1, values[:1].size))
    parts = [np.empty((0, values.shape[1]), np.int64)]
    for start in range(0, len(chunks), at_once):
        some = slice(start, start + at_once)
        # ids that are equal to none stand for no token
        own = np.where(is_token[some], chunks[some], -1).astype(np.int32)
        parts.append(_longest_runs(own, np.where(is_value[some], values[some], -2).astype(np.int32)))
    return np.concatenate(parts)


def _longest_runs(chunks: NDArray[np.int32], values: NDArray[np.int32]) -> Rows:
    """The longest common substring by dynamic programming, one token of all chunks after another."""
    runs, longest = (np.zeros(values.shape, np.int16) for _ in range(2))
    for place in range(chunks.shape[1]):
        runs[..., 1:] = runs[..., :-1] + np.int16(1)
        runs[..., :1] = 1
        runs *= values == chunks[:, place, None, None]
        np.maximum(longest, runs, out=longest)
    return longest.max(2, initial=0).astype(np.int64)
