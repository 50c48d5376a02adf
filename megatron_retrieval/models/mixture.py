"""One source of several, whose next-token probabilities are mixed: RAG-Token (Lewis et al. 2020, arXiv 2005.11401,
section 2.1), decoded by any search."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.models.generation import GenerationState, Sources
from megatron_retrieval.parallel.collectives import gather_rows


class MixedSources:
    """Q groups of sources as Q sources; see `generation.Sources`. The probability of a token is

        m(v | y) = sum_z p(z) p(v | z, y)

    over the sources z of a group, whose weights p(z) do not change with the tokens y written before. All sources of a
    group hold the same sequences.

    Args:
        parts: S sources.
        owners: [S] int64 on the sources' device, ascending, the group of each; every group has one.
        log_weights: [S] float32, log p(z), whose exponentials sum to 1 in a group.
        tp_group: the ranks that share the vocabulary.
    """

    def __init__(self, parts: Sources, owners: Tensor, log_weights: Tensor, tp_group: dist.ProcessGroup) -> None:
        self.parts, self._tp_group = parts, tp_group
        self._mixture = _Mixture(owners, log_weights)

    @property
    def num_sources(self) -> int:
        """See Sources."""
        return self._mixture.num_groups

    @property
    def end_id(self) -> int:
        """See Sources."""
        return self.parts.end_id

    @property
    def device(self) -> torch.device:
        """See Sources."""
        return self.parts.device

    def start(self) -> MixedState:
        """See Sources."""
        return MixedState(self.parts.start(), self._mixture, self._tp_group)

    def token_log_likelihoods(self, labels: Tensor) -> Tensor:
        """See Sources."""
        of_parts = self.parts.token_log_likelihoods(labels[self._mixture.owners])
        return self._mixture.mix(of_parts).masked_fill(labels < 0, 0)


class _Mixture:
    """Which parts make a group, and with which weight; see `MixedSources`."""

    def __init__(self, owners: Tensor, log_weights: Tensor) -> None:
        self.owners, self.log_weights = owners, log_weights
        self.num_groups = int(owners[-1]) + 1 if len(owners) else 0

    def mix(self, log_likelihoods: Tensor) -> Tensor:
        """log sum_z p(z) p: [S, ...] of the parts -> [Q, ...] of the groups."""
        joint = log_likelihoods + self.log_weights.view(-1, *[1] * (log_likelihoods.dim() - 1))
        shape = (self.num_groups, *joint.shape[1:])
        index = self.owners.view(-1, *[1] * (joint.dim() - 1)).expand_as(joint)
        # the greatest stays outside of the sum: likelihoods below the range of float32 are not lost
        greatest = joint.new_full(shape, -torch.inf).scatter_reduce(0, index, joint, "amax")
        shares = (joint - greatest[self.owners]).exp()
        return greatest + joint.new_zeros(shape).index_add(0, self.owners, shares).log()

    def select(self, groups: Tensor) -> tuple[_Mixture, Tensor]:
        """The mixture of these groups [Q'], ascending, and the places of its parts."""
        new = torch.full((self.num_groups,), -1, device=groups.device)
        new[groups] = torch.arange(len(groups), device=groups.device)
        parts = (new[self.owners] >= 0).nonzero()[:, 0]
        return _Mixture(new[self.owners[parts]], self.log_weights[parts]), parts


class MixedState:
    """See `generation.GenerationState`; its logits are log m(v | y)."""

    def __init__(self, parts: GenerationState, mixture: _Mixture, tp_group: dist.ProcessGroup) -> None:
        self._parts, self._mixture, self._tp_group = parts, mixture, tp_group
        self._num_beams = 1

    def step(self, newest: Tensor | None) -> Tensor:
        """See GenerationState."""
        logits = self._parts.step(None if newest is None else self._of_parts(newest))
        # a part's likelihoods need the normaliser of the whole vocabulary
        own = logits.logsumexp(1)
        normalisers = gather_rows(own, self._tp_group).view(self._tp_group.size(), -1).logsumexp(0)
        log_likelihoods = (logits - normalisers[:, None]).view(-1, self._num_beams, logits.size(1))
        return self._mixture.mix(log_likelihoods).flatten(0, 1)

    def select(self, rows: Tensor | None, sources: Tensor | None) -> None:
        """See GenerationState."""
        before, parts = self._mixture, None
        if sources is not None:
            self._mixture, parts = before.select(sources)
        if rows is None:
            return
        num_beams = len(rows) // self._mixture.num_groups
        beams = rows.view(-1, num_beams) % self._num_beams
        kept = torch.arange(len(before.owners), device=rows.device) if parts is None else parts
        part_rows = kept[:, None] * self._num_beams + beams[self._mixture.owners]
        self._num_beams = num_beams
        self._parts.select(part_rows.flatten(), parts)

    def _of_parts(self, values: Tensor) -> Tensor:
        """[Q * n, ...] of the groups' sequences -> [S * n, ...] of the parts'."""
        return values.unflatten(0, (-1, self._num_beams))[self._mixture.owners].flatten(0, 1)
