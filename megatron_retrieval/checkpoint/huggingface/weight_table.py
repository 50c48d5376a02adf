"""Tables of weights: what each of our tensors is called elsewhere, read both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_retrieval.errors import CheckpointError


@dataclass(frozen=True)
class WeightEntry:
    """One of our tensors and the one, or the several, that it is made of elsewhere.

    Attributes:
        num_groups: several are interleaved in so many groups of rows: by head, so that a cut over ranks keeps heads
            whole; 1 puts one below the other.
        shares: of a group's rows that each has; default: the same.
        num_stacked: a single one elsewhere is so many matrices one below the other, which ours interleaves in groups.
    """

    ours: str
    theirs: tuple[str, ...]
    num_groups: int = 1
    shares: tuple[int, ...] = ()
    num_stacked: int = 1

    def rows(self, num_rows: int) -> list[int]:
        """How many of a group's rows each has, where the whole tensor has so many."""
        shares = self.shares or (1,) * len(self.theirs)
        unit = num_rows // (self.num_groups * sum(shares))
        return [share * unit for share in shares]


def import_weights(
    state: Mapping[str, Tensor], table: Iterable[WeightEntry], source: str | Path, model: str
) -> dict[str, Tensor]:
    """Full fp32 tensors under our names.

    Args:
        source: where they come from, and
        model: what they make, for messages.

    Raises:
        CheckpointError: weights are missing, unknown, or do not fit together.
    """
    entries = list(table)
    known = {name for entry in entries for name in entry.theirs}
    if missing := sorted(known - state.keys()):
        raise CheckpointError(f"{source}: {len(missing)} weights are missing, among them {some(missing)}.")
    if unknown := sorted(state.keys() - known):
        raise CheckpointError(f"{source}: {len(unknown)} weights have no place in {model}, among them {some(unknown)}.")
    return {entry.ours: join_weights(entry, state, source) for entry in entries}


def export_weights(full: Mapping[str, Tensor], table: Iterable[WeightEntry]) -> dict[str, Tensor]:
    """The inverse of `import_weights`."""
    state: dict[str, Tensor] = {}
    for entry in table:
        state.update(zip(entry.theirs, split_weight(full[entry.ours], entry), strict=True))
    return state


def some(names: Sequence[str]) -> str:
    """The first few names, for messages."""
    return ", ".join(names[:3])


def join_weights(entry: WeightEntry, state: Mapping[str, Tensor], source: str | Path) -> Tensor:
    """Our fp32 tensor of an entry.

    Raises:
        CheckpointError: those that it is made of do not fit together.
    """
    parts = [state[name].float() for name in entry.theirs]
    if entry.num_stacked > 1:
        return _regrouped(parts[0], entry.num_stacked, entry.num_groups)
    if len(parts) == 1:
        return parts[0]
    sizes = entry.rows(sum(len(part) for part in parts))
    try:
        # a part with other rows than its share does not divide into them
        groups = [part.view(entry.num_groups, size, *part.shape[1:]) for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(groups, 1).flatten(0, 1)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: {some(entry.theirs)} do not fit the configuration: {error}") from error


def split_weight(tensor: Tensor, entry: WeightEntry) -> list[Tensor]:
    """What our tensor of an entry is made of elsewhere."""
    if entry.num_stacked > 1:
        return [_regrouped(tensor, entry.num_groups, entry.num_stacked)]
    if len(entry.theirs) == 1:
        return [tensor]
    parts = tensor.unflatten(0, (entry.num_groups, -1)).split(entry.rows(len(tensor)), 1)
    return [part.flatten(0, 1).contiguous() for part in parts]


def _regrouped(tensor: Tensor, num_outer: int, num_inner: int) -> Tensor:
    """Rows in `num_outer` blocks of `num_inner` parts each -> the first part of each block, then the second, ..."""
    return tensor.unflatten(0, (num_outer, num_inner, -1)).transpose(0, 1).flatten(0, 2).contiguous()
