"""NF4: hand cases, and matrices cut over ranks."""

from __future__ import annotations

import pytest
import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.nf4 import (
    QUANTILES,
    Nf4Matrix,
    dequantise,
    nearest_quantile,
    pack,
    quantise_magnitudes,
)
from megatron_retrieval.models.row_parts import join_rows, split_rows
from megatron_retrieval.models.sharding import shard_of
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks


def test_each_quantile_is_its_own_nearest() -> None:
    """By hand: 0.5 lies between 0.4407 and 0.5626, nearer to the first; the first weight is the upper half byte."""
    assert nearest_quantile(torch.tensor(QUANTILES)).tolist() == list(range(16))
    assert nearest_quantile(torch.tensor([0.5, -0.05, 0.04, -2.0])).tolist() == [12, 6, 8, 0]
    block = torch.zeros(1, 1, 64, dtype=torch.uint8)
    block[0, 0, :3] = torch.tensor([15, 1, 7])
    assert pack(block)[0, :3].tolist() == [0xF1, 0x70, 0x00]


def test_magnitudes_by_hand() -> None:
    """Mean 2, so that they are -1, 0, 0 and 1 times the factor 1: the lowest value of the tree, its zero, its one.

    The values next to one are 0.1 + 0.9 * 63.5 / 64 on both sides; the lowest is the negative of it."""
    codes, scales, offset = quantise_magnitudes(torch.tensor([1.0, 2.0, 2.0, 3.0]))
    assert (codes.tolist(), scales.tolist(), offset.item()) == ([0, 127, 127, 255], [1.0], 2.0)
    matrix = torch.full((4, 32), 0xFF, dtype=torch.uint8)
    found = dequantise(matrix, codes.view(4, 1), scales, offset.view(1), (4,))
    assert found[:, 0].tolist() == pytest.approx([2 - 0.9929688, 2, 2, 3])


def test_error_is_that_of_four_bits() -> None:
    """Of normal weights the mean square error is about a hundredth of the variance."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    blocks = weight.unflatten(1, (-1, 64))
    largest = blocks.abs().amax(2)
    codes, scales, offset = quantise_magnitudes(largest.flatten())
    packed = pack(nearest_quantile(blocks / largest[..., None]))
    found = dequantise(packed, codes.view_as(largest), scales, offset.view(1), (64,))
    assert 0.005 < float((found - weight).pow(2).mean()) < 0.011


def _read(topology: ProcessTopology, full: Tensor, dim: int, stride: int, parts: tuple[int, ...]) -> Tensor:
    size = list(full.shape)
    size[dim] //= topology.tp_size
    weight = nn.Parameter(torch.zeros(size))
    set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dim, stride=stride)
    shard = shard_of(full, weight, topology.tp_rank, topology.tp_size)
    matrix = Nf4Matrix(weight, parts, topology.groups.tp, "linear")
    matrix.fill(shard)
    assert sum(p.numel() * p.element_size() for p in matrix.parameters()) < 0.56 * shard.numel()
    return gather_full(weight, topology, matrix.read(torch.float32))


def _read_all(topology: ProcessTopology, full: Tensor) -> list[Tensor]:
    cases = ((0, 1, (96,)), (1, 1, (96,)), (0, 1, (4, 4, 4)), (0, 2, (48, 48)), (0, 1, (8, 2, 2)))
    found = [_read(topology, full, *case) for case in cases]
    if topology.tp_size == 1:  # apart, then joined
        apart = [_read(topology, part, 0, 1, (len(part),)) for part in split_rows(full, (8, 2, 2))]
        assert torch.equal(found[-1], join_rows(apart, (8, 2, 2)))
        assert not torch.equal(found[-1], found[0])
    return found


def test_the_layout_of_ranks_changes_nothing() -> None:
    """Cut by rows, by columns, by heads, gate and values, groups of queries; each part is as if it were apart."""
    full = torch.randn(96, 768, generator=torch.Generator().manual_seed(1)) * 0.05
    (single,) = run_on_ranks(_read_all, 1, full)
    for found in run_on_ranks(_read_all, 2, full, tensor_model_parallel_size=2):
        assert all(map(torch.equal, found, single))


def _refusal(topology: ProcessTopology) -> str:
    try:
        Nf4Matrix(nn.Parameter(torch.zeros(4, 96)), (4,), topology.groups.tp, "mlp.linear_fc1")
    except ConfigError as error:
        return str(error)
    return ""


def test_blocks_across_rows_are_refused() -> None:
    (message,) = run_on_ranks(_refusal, 1)
    assert message == "--lora-base-dtype nf4: blocks of 64 weights do not divide the 96 columns of mlp.linear_fc1."
