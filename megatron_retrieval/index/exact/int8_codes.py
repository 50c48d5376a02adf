"""int8 copies of vectors for fast approximate products."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from megatron_retrieval.index.exact.bounded_products import GROUP_ROWS, RoughVectors, product

_ROWS_AT_ONCE = 16_384
_SAMPLE_ROWS = 32_768
#: range of the codes in standard deviations; larger values are clipped, which widens the bound of their group
_WIDTH_DEVIATIONS = 4.5


def codes_are_fast(dimension: int) -> bool:
    """Whether this CPU multiplies 8-bit integers fast (AVX-512 VNNI), and without loss: torch 2.13 does not for
    vectors of one dimension."""
    if not torch.cpu._is_vnni_supported():
        return False
    rows = torch.arange(-128, 128).repeat(dimension).view(-1, dimension).to(torch.int8)[:67]
    extreme = torch.full_like(rows[:17], -127)
    return all(
        torch.equal(product(rows, queries.t()).long(), rows.long() @ queries.long().t())
        for queries in (rows[1:2], rows[:33], extreme)
    )


def encode(read: Callable[[int, int], Tensor], num_rows: int) -> RoughVectors | None:
    """int8 codes of the rows around their mean, with the measured error bound of each group.

    Args:
        read: rows start..stop as [n, D] in any floating type.

    Returns:
        None where the rows are all equal, not finite, or of magnitudes that float32 arithmetic cannot handle.
    """
    centre, deviation = _spread(read, num_rows)
    if not 2.0**-30 < deviation < 2.0**30:
        return None
    step = _WIDTH_DEVIATIONS * deviation / 127
    codes = torch.empty(num_rows, len(centre), dtype=torch.int8)
    longest, residuals = [], []
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        rows = read(start, min(start + _ROWS_AT_ONCE, num_rows)).float() - centre
        scaled = (rows / step).round_().clamp_(-127, 127)
        codes[start : start + len(rows)] = scaled
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
