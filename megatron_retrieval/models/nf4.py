"""NF4: matrices in four bits a weight (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3 and appendix E).

A block of 64 weights of a row is divided by its largest magnitude, and every quotient replaced by the nearest of 16
quantiles of the normal distribution. The magnitudes, less their mean, are quantised in their turn: 256 of them share a
factor, and each becomes one of 256 values of a dynamic tree (Dettmers 2016, arXiv 1511.04561).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.row_parts import place_in_part
from megatron_retrieval.models.sharding import ShardLayout, join_shards, layout_of, shard_of

#: weights that share a magnitude, and magnitudes that share a factor
BLOCK, GROUP = 64, 256
#: of appendix E
QUANTILES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_TREE_DIGITS = 7


class Nf4Matrix(nn.Module):
    """A frozen matrix [n, D] of a linear layer, this rank's shard of it; blocks are those of the full matrix.

    A matrix that stands for several (query, key and value) is quantised as if they were apart.

    Args:
        weight: the parameter whose place it takes, with its shape and layout.
        parts: see `row_parts`.

    Raises:
        ConfigError: blocks are not whole in a row of a shard.
    """

    def __init__(self, weight: nn.Parameter, parts: tuple[int, ...], group: dist.ProcessGroup, name: str) -> None:
        super().__init__()
        num_rows, width = weight.shape
        if width % BLOCK:
            cut = f" on each of {group.size()} ranks" if group.size() > 1 else ""
            raise ConfigError(
                f"--lora-base-dtype nf4: blocks of {BLOCK} weights do not divide the {width} columns of {name}{cut}."
            )
        self._layout, self._parts, self._group = layout_of(weight), parts, group
        self.codes = _frozen(torch.zeros(num_rows, width // 2, dtype=torch.uint8), weight)
        self.magnitudes = _frozen(torch.zeros(num_rows, width // BLOCK, dtype=torch.uint8), weight)
        num_groups = [-(-blocks // GROUP) for blocks in self._blocks_of_parts()]
        self.scales = nn.Parameter(torch.zeros(sum(num_groups)), requires_grad=False)
        self.offsets = nn.Parameter(torch.zeros(len(parts)), requires_grad=False)
        self.to(weight.device)
        self.read(torch.float32)  # tables are on the device before the first step

    @torch.no_grad()
    def fill(self, values: Tensor) -> None:
        """Quantise this rank's shard [n, D]; all ranks of the group call this together."""
        blocks = values.detach().float().unflatten(1, (-1, BLOCK))
        largest = blocks.abs().amax(2)
        self.codes.copy_(pack(nearest_quantile(blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)[..., None])))
        full = _gather(largest, self._layout, self._group)
        places = self._place_of_rows(full.size(0))
        codes, scales, offsets = torch.empty_like(full, dtype=torch.uint8), [], []
        for part in range(len(self._parts)):
            rows = places[0] == part
            own, scale, offset = quantise_magnitudes(full[rows].flatten())
            codes[rows] = own.view(-1, full.size(1))
            scales.append(scale)
            offsets.append(offset)
        self.magnitudes.copy_(shard_of(codes, self.magnitudes, self._group.rank(), self._group.size()))
        self.scales.copy_(torch.cat(scales))
        self.offsets.copy_(torch.stack(offsets))

    def read(self, dtype: torch.dtype) -> Tensor:
        """This rank's shard [n, D] as it was before, up to rounding."""
        cut = (self._layout, self._group.rank(), self._group.size())
        return dequantise(self.codes, self.magnitudes, self.scales, self.offsets, self._parts, dtype, *cut)

    def _blocks_of_parts(self) -> list[int]:
        size = self._group.size()
        num_rows = self.magnitudes.size(0) * (size if self._layout.dim == 0 else 1)
        per_row = self.magnitudes.size(1) * (size if self._layout.dim == 1 else 1)
        return [num_rows // sum(self._parts) * part * per_row for part in self._parts]

    def _place_of_rows(self, num_rows: int) -> Tensor:
        return place_in_part(num_rows, self._parts).to(self.codes.device)


def dequantise(
    codes: Tensor,
    magnitudes: Tensor,
    scales: Tensor,
    offsets: Tensor,
    parts: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: ShardLayout = ShardLayout(),  # noqa: B008
    rank: int = 0,
    num_ranks: int = 1,
) -> Tensor:
    """The matrix [n, D] of an `Nf4Matrix`, or what one of several ranks has of it.

    Args:
        codes: uint8 [n, D / 2], two a byte, the first in the upper half.
        magnitudes: uint8 [n, D / 64].
        scales: fp32, one for 256 magnitudes of a part, part after part.
        offsets: fp32, one for each part.
    """
    part, group = _groups_of(tuple(magnitudes.shape), parts, layout, rank, num_ranks, codes.device)
    tree = _on(_tree(), codes.device)
    largest = tree[magnitudes.int()] * scales[group] + offsets[part][:, None]
    pairs = nn.functional.embedding(codes.int(), _on(_pairs(), codes.device))
    return (pairs.view(*magnitudes.shape, BLOCK) * largest[..., None]).flatten(1).to(dtype)


@cache
def _groups_of(
    shape: tuple[int, int],
    parts: tuple[int, ...],
    layout: ShardLayout,
    rank: int,
    num_ranks: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Of a rank's magnitudes [n, blocks] the part [n] of each row, and the factor [n, blocks] that each is stored with;
    kept, as layers have few shapes."""
    rows_cut, columns_cut = (num_ranks if layout.dim == dim else 1 for dim in (0, 1))
    num_rows, num_blocks = shape[0] * rows_cut, shape[1] * columns_cut
    part, place = place_in_part(num_rows, parts, layout, rank, num_ranks)
    groups = torch.tensor([-(-(num_rows // sum(parts) * rows * num_blocks) // GROUP) for rows in parts])
    column = torch.arange(shape[1]) + (rank * shape[1] if columns_cut > 1 else 0)
    group = (groups.cumsum(0) - groups)[part][:, None] + (place[:, None] * num_blocks + column) // GROUP
    return part.to(device), group.to(device)


def nearest_quantile(quotients: Tensor) -> Tensor:
    """Numbers in [-1, 1] -> uint8 indices of the nearest quantiles; of two equally near ones the lower."""
    values = torch.tensor(QUANTILES, device=quotients.device)
    return torch.bucketize(quotients, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8)


def pack(indices: Tensor) -> Tensor:
    """[n, blocks, 64] indices below 16 -> uint8 [n, blocks * 32], the first of two in the upper half."""
    upper, lower = indices.flatten(1).unflatten(1, (-1, 2)).unbind(2)
    return upper << 4 | lower


def quantise_magnitudes(largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n] magnitudes of a matrix's blocks, in the order of its weights.

    Returns:
        uint8 [n] codes; [n / 256] factors; the mean, a number.
    """
    offset = largest.mean()
    centred = nn.functional.pad(largest - offset, (0, -len(largest) % GROUP)).view(-1, GROUP)
    scale = centred.abs().amax(1)
    quotients = (centred / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).flatten()[: len(largest)]
    tree = _on(_tree(), largest.device)
    codes = torch.bucketize(quotients, (tree[1:] + tree[:-1]) / 2, out_int32=True)
    return codes.to(torch.uint8), scale, offset


@cache
def _tree() -> Tensor:
    """The 256 values of a dynamic tree of 8 bits: 0, 1, and on both sides of 0, for each decimal place, the middles of
    equal steps from a tenth to one, twice as many as for the place after it."""
    values = [torch.tensor([0.0, 1.0])]
    for digits in range(_TREE_DIGITS):
        steps = torch.linspace(0.1, 1, 2**digits + 1)
        middles = (steps[1:] + steps[:-1]) / 2 * 10.0 ** (digits - _TREE_DIGITS + 1)
        values += [middles, -middles]
    return torch.cat(values).sort().values


@cache
def _pairs() -> Tensor:
    """[256, 2] the two weights of every byte."""
    values = torch.tensor(QUANTILES)
    return torch.cartesian_prod(values, values)


@cache
def _on(table: Tensor, device: torch.device) -> Tensor:
    return table.to(device)


def _frozen(values: Tensor, weight: nn.Parameter) -> nn.Parameter:
    """A parameter that is never trained, cut over ranks as `weight` is."""
    parameter, layout = nn.Parameter(values, requires_grad=False), layout_of(weight)
    if layout.dim is not None:
        set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=layout.dim, stride=layout.stride)
    return parameter


def _gather(shard: Tensor, layout: ShardLayout, group: dist.ProcessGroup) -> Tensor:
    """The full tensor of all ranks' shards."""
    if group.size() == 1:
        return shard
    shards = [torch.empty_like(shard) for _ in range(group.size())]
    dist.all_gather(shards, shard.contiguous(), group=group)
    return join_shards(shards, layout)
