"""LoRA (Hu et al. 2022, arXiv 2106.09685): W x + (alpha / r) B A x, W frozen, A [r, D] and B [n, r] trained.

A matrix that stands for several has an A and a B for each of them, as if they were apart. On several tensor-parallel
ranks that which is cut like W is cut, and the other is whole: B of a column-parallel linear, A of a row-parallel one.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.config.checks import Checked, Fraction, NonNegativeInt, PositiveFloat
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dropout import dropout
from megatron_retrieval.models.linear import ColumnParallelLinear, ParallelLinear, RowParallelLinear
from megatron_retrieval.models.nf4 import Nf4Matrix
from megatron_retrieval.models.row_parts import block_rows, place_in_part
from megatron_retrieval.models.sharding import full_shape, shard_of
from megatron_retrieval.parallel.precision import allow_rounding, may_round
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.seeds import derive_seed

#: where a manifest keeps the parts of linears that stand for several matrices, by the linear's name
PARTS_KEY = "lora-parts"
#: endings of the names of parameters: an adapter's, and those that take a matrix's place
A, B = ".adapter.a", ".adapter.b"
NF4_CODES, NF4 = ".nf4.codes", (".nf4.codes", ".nf4.magnitudes", ".nf4.scales", ".nf4.offsets")

#: matrices of adapted models, by what is compared first
_HELD: dict[tuple[Any, ...], list[weakref.ref[nn.Parameter]]] = {}


@dataclass(kw_only=True, frozen=True)
class LoraConfig(Checked):
    """Low-rank adapters (LoRA) beside frozen weights, which are trained in their place; heads are trained as well."""

    lora_rank: NonNegativeInt | None = None
    """Rank of the adapters; 0: none, all weights are trained. Default: what the checkpoint has that training starts
    from, with its settings; its adapters are then trained further, and otherwise merged into the weights first."""
    lora_alpha: PositiveFloat = 32.0
    """Factor of the adapters' outputs, times the rank."""
    lora_dropout: Fraction = 0.0
    """Share of the adapters' inputs dropped in training."""
    lora_targets: tuple[str, ...] = ()
    """Names of the linears to adapt, such as linear_qkv linear_proj linear_fc1 linear_fc2; default: all."""
    lora_base_dtype: Literal["auto", "nf4"] = "auto"
    """Number format in which the matrices of these linears are kept: auto: that of --dtype; nf4: four bits a weight
    (QLoRA)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if self.lora_rank is None and given:
            raise ConfigError(f"--{given[0].replace('_', '-')} has no effect without --lora-rank.")

    @property
    def is_active(self) -> bool:
        """Whether a model differs by it."""
        return bool(self.lora_rank) or self.is_quantised

    @property
    def is_quantised(self) -> bool:
        """Whether matrices are kept in four bits a weight."""
        return self.lora_base_dtype == "nf4"

    @property
    def scale(self) -> float:
        """Factor of B A x."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0


class Adapter(nn.Module):
    """What is added to the output of `linear`.

    Attributes:
        a: [parts * r, D], one below the other; drawn as by Hu et al.
        b: [n, r], its rows in the order of the matrix's; 0 at the start.
    """

    _part: Tensor

    def __init__(self, linear: ParallelLinear, config: LoraConfig) -> None:
        super().__init__()
        place = next(linear.parameters())
        dtype, rank = linear.config.params_dtype, config.lora_rank or 0
        self._is_column = isinstance(linear, ColumnParallelLinear)
        self._group, self._num_parts = linear.tp_group, len(linear.parts)
        self._scale, self._dropout = config.scale, config.lora_dropout
        num_rows, width = linear.shard_shape
        self.a = nn.Parameter(torch.zeros(self._num_parts * rank, width, dtype=dtype, device=place.device))
        self.b = nn.Parameter(torch.zeros(num_rows, rank, dtype=dtype, device=place.device))
        layout, cut = linear.layout, self.b if self._is_column else self.a
        if layout.dim is not None:
            set_tensor_model_parallel_attributes(cut, is_parallel=True, dim=layout.dim, stride=layout.stride)
        part, _ = place_in_part(linear.output_size, linear.parts, layout, self._group.rank(), self._group.size())
        self.register_buffer("_part", part.to(place.device), persistent=False)

    @property
    def is_idle(self) -> bool:
        """Whether it adds nothing."""
        return not bool(self.b.any())

    def forward(self, states: Tensor, output: Tensor) -> Tensor:
        """[..., D] and the frozen matrix's [..., n] -> [..., n]."""
        low = F.linear(self._drop(states), self.a)
        if self._is_column:
            low = copy_to_tensor_model_parallel_region(low, group=self._group)
        else:
            low = reduce_from_tensor_model_parallel_region(low, group=self._group)
        rows = block_rows(self.b, self._part, self._num_parts)
        return torch.addmm(output.flatten(0, -2), low.flatten(0, -2), rows.t(), alpha=self._scale).view_as(output)

    def _drop(self, states: Tensor) -> Tensor:
        if not (self.training and self._dropout):
            return states
        if self._is_column:
            return dropout(states, self._dropout)
        with tensor_parallel.get_cuda_rng_tracker().fork():  # each rank has other units
            return dropout(states, self._dropout)


def adapt(model: nn.Module, config: LoraConfig, topology: ProcessTopology, *, seed: int = 0, fill: bool = True) -> None:
    """`freeze`, then `add_adapters`."""
    freeze(model, config, topology, fill=fill)
    add_adapters(model, config, topology, seed=seed)


def freeze(model: nn.Module, config: LoraConfig, topology: ProcessTopology, *, fill: bool = True) -> None:
    """Freeze a model's weights, but for those of heads (plain linears), in the number format that is asked for.

    All ranks of a tensor-parallel group call this together.

    Args:
        fill: quantise the weights that the model has; otherwise what takes their place is left to be loaded.

    Raises:
        ConfigError: there is no linear of a name, or it cannot be quantised.
    """
    heads = {id(p) for module in model.modules() if type(module) is nn.Linear for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in heads:
            parameter.requires_grad_(False)
            allow_rounding(parameter)
    for name, linear in _targets(model, config.lora_targets):
        if config.is_quantised:
            matrix = Nf4Matrix(linear.weight, linear.parts, topology.groups.tp, name)
            if fill:
                matrix.fill(linear.weight)
            linear.weight, linear.nf4 = None, matrix
            for parameter in matrix.parameters():
                allow_rounding(parameter)


def add_adapters(model: nn.Module, config: LoraConfig, topology: ProcessTopology, *, seed: int = 0) -> None:
    """Put adapters beside a model's linears, which change nothing before they are trained: to the bit.

    Args:
        seed: names the initial weights, which are the same at any layout of ranks.

    Raises:
        ConfigError: there is no linear of a name.
    """
    if config.lora_rank:
        for name, linear in _targets(model, config.lora_targets):
            linear.adapter = Adapter(linear, config).train(linear.training)
            _draw(linear.adapter.a, f"{name}{A}", topology, seed)


def hold_once(model: nn.Module) -> None:
    """Keep frozen matrices in memory once that an adapted model of this process, or another tower of this one, has as
    well: the base is there once, whatever the number of adapters over it. To be called after weights are loaded."""
    for parameter in model.parameters():
        if parameter.requires_grad or not may_round(parameter) or parameter.dim() < 2:
            continue
        first = tuple(parameter.detach().flatten()[:8].tolist())
        held = _HELD.setdefault((parameter.shape, parameter.dtype, parameter.device, first), [])
        held[:] = [reference for reference in held if reference() is not None]
        equal = (other for reference in held if (other := reference()) is not None and torch.equal(other, parameter))
        if (other := next(equal, None)) is not None:
            parameter.data = other.data
        held.append(weakref.ref(parameter))


def linears(model: nn.Module) -> Iterator[tuple[str, ParallelLinear]]:
    """The linears of a model that can be adapted, by name."""
    for name, module in model.named_modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear):
            yield name, module


def deciding_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that its output depends on: not those of adapters that add nothing, as untrained ones do."""
    idle = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Adapter) and module.is_idle)
    return {name: parameter for name, parameter in model.named_parameters() if not name.startswith(idle)}


def adapter_settings(model: nn.Module, config: LoraConfig) -> dict[str, Any]:
    """What the manifest of an adapted model's checkpoints keeps beside the model's own settings."""
    if not config.is_active:
        return {}
    parts = {name.rpartition(".")[2]: list(linear.parts) for name, linear in linears(model) if len(linear.parts) > 1}
    return {**to_flat_dict(config), PARTS_KEY: parts}


def without_adapters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's settings of the model whose matrices are plain."""
    return {key: value for key, value in settings.items() if key not in {*to_flat_dict(LoraConfig()), PARTS_KEY}}


def saved_lora(settings: Mapping[str, Any]) -> LoraConfig:
    """The adapters of the model that a manifest's settings describe."""
    return from_flat_dict(LoraConfig, settings) if PARTS_KEY in settings else LoraConfig()


def _targets(model: nn.Module, names: tuple[str, ...]) -> list[tuple[str, ParallelLinear]]:
    found = list(linears(model))
    known = {name.rpartition(".")[2] for name, _ in found}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--lora-targets {unknown[0]}: the model's linears are {' '.join(sorted(known))}.")
    return [(name, linear) for name, linear in found if not names or name.rpartition(".")[2] in names]


@torch.no_grad()
def _draw(parameter: nn.Parameter, name: str, topology: ProcessTopology, seed: int) -> None:
    """Uniform in +-1 / sqrt(D), as linears start in PyTorch."""
    shape = full_shape(parameter, topology.tp_size)
    stream = torch.Generator().manual_seed(derive_seed(seed, "initial weights", name))
    full = torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=stream)
    parameter.copy_(shard_of(full, parameter, topology.tp_rank, topology.tp_size))
