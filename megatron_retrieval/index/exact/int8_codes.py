"""8-bit copies of vectors for fast approximate products."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from megatron_retrieval.index.exact.bounded_products import (
    GROUP_ROWS,
    LARGEST_CODE,
    ZERO_CODE,
    RoughVectors,
    packed,
    product,
)

_ROWS_AT_ONCE = 16_384
_SAMPLE_ROWS = 32_768
#: range of the codes in standard deviations; larger values are clipped, which widens the bound of their group
_WIDTH_DEVIATIONS = 4.5
#: rows of a product that is timed
_ROWS_TIMED = 4096


@cache
def fastest_codes(dimension: int) -> torch.dtype | None:
    """The type of 8-bit codes that this CPU multiplies fastest, without an error and faster than float32, or None.

    Measured: libraries choose their code by instruction sets (AVX-512 VNNI, AVX2, ...) that they know best themselves.
    """
    kinds = [dtype for dtype in LARGEST_CODE if is_exact(dtype, dimension)]
    seconds = _seconds([torch.float32, *kinds], dimension)
    fastest = min(seconds, key=seconds.__getitem__)
    return fastest if fastest in kinds else None


def is_exact(dtype: torch.dtype, dimension: int) -> bool:
    """Whether codes of this type are multiplied without an error; int8 of one dimension is not, by torch 2.13."""
    codes = torch.arange(-128, 128).repeat(dimension).view(-1, dimension)[:67]
    largest = LARGEST_CODE[dtype]
    queries = codes.clamp(-largest, largest)
    try:
        return all(
            torch.equal(product(*_operands(dtype, codes, some)).long(), codes @ some.t())
            for some in (queries[1:2], queries[:33], torch.full_like(codes[:17], -largest))
        )
    except (AttributeError, RuntimeError, NotImplementedError):  # this build of torch has no such product
        return False


def _operands(dtype: torch.dtype, rows: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [n, D] and [B, D] as `product` takes them."""
    if dtype == torch.uint8:
        return (rows + ZERO_CODE).to(dtype), packed(queries.to(torch.int8))
    return rows.to(dtype), queries.to(dtype).t()


def _seconds(dtypes: Sequence[torch.dtype], dimension: int) -> dict[torch.dtype, float]:
    """The best of a few products with 16 queries, taken in turns: other programs disturb each type alike."""
    ones = torch.ones(_ROWS_TIMED, dimension, dtype=torch.int64)
    operands = {dtype: _operands(dtype, ones, ones[:16]) for dtype in dtypes}
    taken: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads wait for each other, which says nothing about products
    try:
        for _ in range(5):
            for dtype in dtypes:
                start = time.perf_counter()
                product(*operands[dtype])
                taken[dtype].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {dtype: min(times) for dtype, times in taken.items()}


def encode(read: Callable[[int, int], Tensor], num_rows: int, dtype: torch.dtype) -> RoughVectors | None:
    """8-bit codes of the rows around their mean, with the measured error bound of each group.

    Args:
        read: rows start..stop as [n, D] in any floating type.
        dtype: of the codes, int8 or uint8.

    Returns:
        None where the rows are all equal, not finite, or of magnitudes that float32 arithmetic cannot handle.
    """
    centre, deviation = _spread(read, num_rows)
    if not 2.0**-30 < deviation < 2.0**30:
        return None
    step = _WIDTH_DEVIATIONS * deviation / 127
    codes = torch.empty(num_rows, len(centre), dtype=dtype)
    zero = ZERO_CODE if dtype == torch.uint8 else 0
    longest, residuals = [], []
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        rows = read(start, min(start + _ROWS_AT_ONCE, num_rows)).float() - centre
        scaled = (rows / step).round_().clamp_(-127, 127)
        codes[start : start + len(rows)] = scaled + zero if zero else scaled
        longest.append(_longest_of_groups(rows))
        residuals.append(_longest_of_groups(rows.sub_(scaled, alpha=step)))
    bounds = torch.cat(longest), torch.cat(residuals)
    if not all(bool(torch.isfinite(bound).all()) for bound in bounds):
        return None
    # The differences above were rounded to float32 once each.
    blur = (float(bounds[0].max()) + float(centre.norm())) * 2.0**-22
    longest_of_groups, residuals_of_groups = (bound * (1 + 2.0**-12) + blur for bound in bounds)
    return RoughVectors(codes, longest_of_groups, residuals_of_groups, step, centre)


def _spread(read: Callable[[int, int], Tensor], num_rows: int) -> tuple[Tensor, float]:
    """Mean [D] of a sample spread over the rows, and the standard deviation of coordinates from it."""
    pieces = max(1, min(32, num_rows // 1024))
    rows = math.ceil(min(_SAMPLE_ROWS, num_rows) / pieces)
    starts = [number * (num_rows - rows) // max(1, pieces - 1) for number in range(pieces)]
    sample = torch.cat([read(start, start + rows) for start in starts]).float()
    centre = sample.mean(0)
    return centre, float((sample - centre).square().mean().sqrt())


def _longest_of_groups(rows: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(rows, dim=1)
    missing = -len(lengths) % GROUP_ROWS
    return torch.cat([lengths, lengths.new_zeros(missing)]).view(-1, GROUP_ROWS).amax(1)
