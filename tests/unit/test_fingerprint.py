"""The digest of weights: the same however they are cut, another for any other weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.fingerprint import model_fingerprint, shard_digest
from megatron_retrieval.models.sharding import ShardLayout, layout_of, mark_padded, shard_of

#: shape of the full tensor, the dimension that is cut, matrices in it, rows of all shards together
CASES = [
    ((8, 6), None, 1, None),
    ((8, 6), 0, 1, None),
    ((8, 6), 1, 1, None),
    ((16, 3), 0, 2, None),
    ((12,), 0, 1, None),
]
CASES += [((13, 6), 0, 1, 16), ((5,), None, 1, 8), ((7,), 0, 1, 8)]


def _parameter(case: tuple[Any, ...], tp_size: int) -> nn.Parameter:
    """What a rank holds a shard in."""
    shape, dim, stride, padded_rows = case
    sizes = list(shape) if padded_rows is None else [padded_rows, *shape[1:]]
    if dim is not None:
        sizes[dim] //= tp_size
    parameter: Any = nn.Parameter(torch.empty(sizes))
    parameter.tensor_model_parallel, parameter.partition_dim = dim is not None, -1 if dim is None else dim
    parameter.partition_stride = stride
    if padded_rows is not None:
        mark_padded(parameter, shape[0])
    return parameter  # type: ignore[no-any-return]


def _digest(full: Tensor, case: tuple[Any, ...], tp_size: int, name: str = "weight") -> int:
    parameter, total = _parameter(case, tp_size), 0
    for rank in range(tp_size):
        shard = torch.full_like(parameter, 9.0)  # padding rows do not count
        values = shard_of(full, parameter, rank, tp_size).detach()
        shard[: len(values)] = values
        ranks: Any = SimpleNamespace(tp_rank=rank, tp_size=tp_size)
        total += shard_digest(name, shard, layout_of(parameter), ranks)
    return total % 2**256


@pytest.mark.parametrize("case", CASES)
def test_any_layout_has_the_same_digest(case: tuple[Any, ...]) -> None:
    full = torch.randn(case[0], generator=torch.Generator().manual_seed(1))
    whole = _digest(full, case, 1)
    sizes = [size for size in (2, 4) if case[1] is None or _divides(case, size)]
    assert sizes
    assert [_digest(full, case, size) for size in sizes] == [whole] * len(sizes)
    assert _digest(full, case, 1, "bias") != whole
    for place in range(full.numel()):
        changed = full.clone()
        changed.view(-1)[place] += 1e-3
        assert _digest(changed, case, 1) != whole
    assert _digest(full.flip(0), case, 1) != whole


def _divides(case: tuple[Any, ...], tp_size: int) -> bool:
    shape, dim, stride, padded_rows = case
    return (padded_rows or shape[dim]) % (tp_size * stride) == 0


def test_a_weight_counts_by_its_value_not_by_its_dtype() -> None:
    topology: Any = SimpleNamespace(tp_rank=0, tp_size=1)
    weight, layout = torch.randn(4, 3).bfloat16(), ShardLayout(0)
    assert shard_digest("w", weight, layout, topology) == shard_digest("w", weight.float(), layout, topology)
    codes = torch.arange(12, dtype=torch.uint8).view(4, 3)
    assert shard_digest("w", codes, layout, topology) != shard_digest("w", codes + 1, layout, topology)


def test_a_model_is_named_by_all_that_makes_it() -> None:
    named = {
        model_fingerprint("kind", {"layers": 2}, [b"vocabulary"], [5, 2**256 - 1], ["part"]),
        model_fingerprint("other", {"layers": 2}, [b"vocabulary"], [4], ["part"]),
        model_fingerprint("kind", {"layers": 3}, [b"vocabulary"], [4], ["part"]),
        model_fingerprint("kind", {"layers": 2}, [b"words"], [4], ["part"]),
        model_fingerprint("kind", {"layers": 2}, [b"vocabulary"], [3], ["part"]),
        model_fingerprint("kind", {"layers": 2}, [b"vocabulary"], [4], ["parts"]),
    }
    assert len(named) == 6
    assert model_fingerprint("kind", {"layers": 2}, [b"vocabulary"], [4], ["part"]) in named
