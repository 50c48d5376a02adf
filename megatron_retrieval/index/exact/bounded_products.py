"""Fast approximate matrix products with bounds of their error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.parallel.machine import bf16_is_fast

#: rows per group; a group has one maximum and one bound
GROUP_ROWS = 16
#: magnitudes between which float32 arithmetic here neither overflows nor becomes subnormal
SMALLEST, LARGEST = 2.0**-50, 2.0**50
#: slightly above 1, for rounding errors of the bounds themselves
_MARGIN = 1 + 2.0**-12
_TINY = torch.finfo(torch.float64).tiny
#: greatest code of a query, by the type of the rows' codes: CPUs without VNNI add two products of uint8 and int8 in 16
#: bits, which 2 * 255 * 63 does not exceed
LARGEST_CODE = {torch.int8: 127, torch.uint8: 63}
#: what stands for 0 in uint8
ZERO_CODE = 128


@dataclass(frozen=True)
class RoughQueries:
    """Queries for the approximate product: score = product * unit + offset.

    Attributes:
        matrix: [D, B] in the type of the rows; for rows in uint8, what `product` takes beside them.
        unit, offset: [B] float32.
        lengths: [B] float32, upper bound of the length of the multiplied part.
        residuals: [B] float32, upper bound of the length of the rest.
        slack: [B] float32, upper bound of rounding errors in any order of additions; infinite for queries whose
            magnitude (or that of the rows) float32 cannot handle, whose other entries are zero.
    """

    matrix: Tensor
    unit: Tensor
    offset: Tensor
    lengths: Tensor
    residuals: Tensor
    slack: Tensor


@dataclass(frozen=True)
class RoughVectors:
    """Rows for the approximate product: row = centre + step * matrix row + residual.

    Attributes:
        matrix: [n, D] int8, uint8 (`ZERO_CODE` stands for 0), bfloat16, float16 or float32.
        longest: [n / GROUP_ROWS] or [1] float32, at least the length of any row of the group, seen from the centre.
        residuals: likewise, of the residual.
        step: value of 1 in the matrix.
        centre: [D] float32; None: zero.
    """

    matrix: Tensor
    longest: Tensor
    residuals: Tensor
    step: float = 1.0
    centre: Tensor | None = None

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def is_coded(self) -> bool:
        """Whether the rows are 8-bit codes, whose bounds are wide."""
        return self.matrix.dtype in LARGEST_CODE

    @property
    def reach(self) -> float:
        """At least the length of the longest row."""
        centre = 0.0 if self.centre is None else float(self.centre.double().norm())
        return (float(self.longest.max()) + centre) * _MARGIN

    def queries(self, queries: Tensor) -> RoughQueries:
        """[B, D] float32, turned into the type of the rows."""
        exact = queries.double()
        lengths, reach = exact.norm(dim=1), self.reach
        strange = (lengths > 0) & ((lengths < SMALLEST) | (lengths > LARGEST))
        if reach > 0 and not SMALLEST < reach < LARGEST:
            strange = torch.ones_like(strange)
        if self.matrix.dtype.is_floating_point:  # float16 ends at 65,504
            strange |= ~exact.to(self.matrix.dtype).isfinite().all(1)
        exact = exact.masked_fill(strange[:, None], 0)
        if self.is_coded:
            query_step = (exact.abs().amax(1) / LARGEST_CODE[self.matrix.dtype]).clamp(min=_TINY)
            short = (exact / query_step[:, None]).round().to(torch.int8)
            kept = short.double() * query_step[:, None]
        else:
            query_step = exact.new_ones(len(exact))
            short = exact.to(self.matrix.dtype)
            kept = short.double()
        centre = exact.new_zeros(exact.size(1)) if self.centre is None else self.centre.double()
        slack = (exact.size(1) + 8) * 2.0**-22 * lengths * reach
        return RoughQueries(
            matrix=packed(short) if self.matrix.dtype == torch.uint8 else short.t(),
            unit=(query_step * self.step).float(),
            offset=(exact @ centre).float(),
            lengths=(kept.norm(dim=1) * _MARGIN).float(),
            residuals=((exact - kept).norm(dim=1) * _MARGIN).float(),
            slack=torch.where(strange, torch.inf, slack).float(),
        )


def score_dtype(rows: Tensor) -> torch.dtype:
    """The type of their products: int32 for int8; float32 for uint8 and on CUDA; else that of the rows."""
    if rows.dtype == torch.int8:
        return torch.int32
    return torch.float32 if rows.is_cuda or rows.dtype == torch.uint8 else rows.dtype


def product(rows: Tensor, queries: Tensor, out: Tensor | None = None) -> Tensor:
    """[n, D] @ [D, B] -> [n, B] of `score_dtype`."""
    if rows.dtype == torch.uint8:
        scores = _product_of_packed(rows, queries)
        return scores if out is None else out.copy_(scores)
    if rows.dtype == torch.int8:
        return torch._int_mm(rows, queries, out=out)
    if rows.dtype != score_dtype(rows):
        return torch.mm(rows, queries, out_dtype=score_dtype(rows), out=out)
    return torch.mm(rows, queries, out=out)


def packed(codes: Tensor) -> Tensor:
    """[B, D] int8 -> as oneDNN takes them beside rows in uint8."""
    return torch.ops.onednn.qlinear_prepack(codes, None)


def _product_of_packed(rows: Tensor, queries: Tensor) -> Tensor:
    """oneDNN's product of uint8 and int8; summed as integers, then turned into float32, which holds them up to 2^24."""
    width = queries.size(1)
    ones, zeros = torch.ones(width), torch.zeros(width, dtype=torch.int64)
    row_unit, bias, out_unit, out_zero = 1.0, None, 1.0, 0
    return torch.ops.onednn.qlinear_pointwise(
        *(rows, row_unit, ZERO_CODE),
        *(queries, ones, zeros, bias),
        *(out_unit, out_zero, torch.float32),
        *("none", [], ""),  # nothing is done to the scores
    )


def rounding(scores: Tensor) -> float:
    """Largest relative error with which a product was rounded to the type that it came in, beyond its slack."""
    return torch.finfo(scores.dtype).eps if scores.dtype in (torch.bfloat16, torch.float16) else 0.0


def of_block(block: Tensor, longest: float, dtype: torch.dtype) -> RoughVectors:
    """A block [n, D] for a product in `dtype`: its own type, or bfloat16 for float16, which CPUs do not multiply."""
    bounds = torch.tensor([longest], dtype=torch.float64, device=block.device) * _MARGIN
    # each coordinate is off by half a unit in its last place, or lies among the subnormal numbers
    share = torch.finfo(dtype).eps / 2 if block.dtype != dtype else 0.0
    residuals = bounds * share + (2.0**-126 * block.size(1) if share else 0.0)
    return RoughVectors(block.to(dtype), bounds.float(), residuals.float())


def product_dtype(block: Tensor) -> torch.dtype:
    """The type in which rows kept in this one are multiplied fastest on their device."""
    if block.is_cuda or block.dtype == torch.float32:
        return block.dtype
    # Without instructions for bfloat16 a product in it is slower than one in float32, and its rounding is not known.
    return torch.bfloat16 if bf16_is_fast(block.device) else torch.float32
