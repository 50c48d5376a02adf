"""A matrix that stands for several: which of its rows belong to which of them.

`parts` gives the rows of each in a group; groups follow one another. Query, key and value of a head are a group of
three times the head's width; a gate and the values that it multiplies are one group.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from megatron_retrieval.models.sharding import ShardLayout, places_in_full


@cache
def place_in_part(
    num_rows: int,
    parts: tuple[int, ...],
    layout: ShardLayout = ShardLayout(),  # noqa: B008
    rank: int = 0,
    num_ranks: int = 1,
) -> Tensor:
    """[2, n] for each row its part, and its place among the rows of this part in the full matrix.

    Args:
        num_rows: of the full matrix.
        layout: where a rank's rows are wanted, how they are cut.
    """
    num_groups, sizes = num_rows // sum(parts), torch.tensor(parts)
    part = torch.arange(len(parts)).repeat_interleave(sizes).repeat(num_groups)
    within = torch.cat([torch.arange(size) for size in parts]).repeat(num_groups)
    group = torch.arange(num_groups).repeat_interleave(sum(parts))
    places = torch.stack([part, group * sizes[part] + within])
    if layout.dim != 0 or num_ranks == 1:
        return places
    return places[:, places_in_full(num_rows // num_ranks, layout, rank, num_ranks)]


def split_rows(matrix: Tensor, parts: tuple[int, ...]) -> list[Tensor]:
    """The matrices that a full one [n, D] stands for."""
    part, _ = place_in_part(len(matrix), parts)
    return [matrix[part == number].contiguous() for number in range(len(parts))]


def join_rows(matrices: list[Tensor], parts: tuple[int, ...]) -> Tensor:
    """The inverse of `split_rows`."""
    part, place = place_in_part(sum(map(len, matrices)), parts)
    joined = matrices[0].new_empty(len(part), *matrices[0].shape[1:])
    for number, matrix in enumerate(matrices):
        joined[part == number] = matrix[place[part == number]]
    return joined


def block_rows(matrix: Tensor, part: Tensor, num_parts: int) -> Tensor:
    """[n, R] rows -> [n, num_parts * R]: each row in the columns of its part, 0 elsewhere.

    Args:
        part: [n] int64, of each row.
    """
    if num_parts == 1:
        return matrix
    is_own = part[:, None] == torch.arange(num_parts, device=part.device)
    return (matrix[:, None] * is_own[..., None]).flatten(1)
