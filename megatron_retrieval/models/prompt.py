"""Prompts that generation continues: their keys and values, read by all sequences that continue a prompt."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from megatron_retrieval.models.attention import additive
from megatron_retrieval.models.memory import KeysAndValues, ReadMemory, by_head


@dataclass(frozen=True)
class Prompts:
    """Keys and values of B prompts, kept once however many sequences continue each of them.

    Attributes:
        computed: by attention module, [T, B, groups of this rank, head width] with padding.
        lengths: [B] int64 on the model's device, tokens of each.
        newest: [B] int64, the last token of each prompt, which is not among them: generation begins with it.
        is_padded: prompts differ in length.
        longest: the greatest of `lengths`, known to the host.
    """

    computed: Mapping[Hashable, KeysAndValues]
    lengths: Tensor
    newest: Tensor
    is_padded: bool
    longest: int

    @property
    def device(self) -> torch.device:
        """Of its tensors."""
        return self.lengths.device

    def positions(self, num_rows: int) -> Tensor:
        """[R] the position of the first token behind the prompts, for sequences in consecutive rows."""
        return self.lengths.repeat_interleave(num_rows // len(self.lengths))

    def bias(self, window: int | None, num_new: int) -> Tensor | None:
        """[B, T + num_new] what is added to the logits of the newest of `num_new` tokens behind each prompt: the lowest
        number at padding, and where a `window` of so many tokens does not reach; None: nothing."""
        if window is None and not self.is_padded:
            return None
        key = next(iter(self.computed.values()))[0]
        columns = torch.arange(len(key), device=self.device)
        hidden = columns >= self.lengths[:, None]
        new = torch.arange(num_new, device=self.device)
        behind = new.expand(len(self.lengths), -1) < 0
        if window is not None:
            first = self.lengths[:, None] + num_new - window
            hidden, behind = hidden | (columns < first), self.lengths[:, None] + new < first
        return additive(torch.cat([hidden, behind], 1), key.dtype)

    def memory_at(self, place: int) -> ReadMemory | None:
        """What layers that read one read at a token; here none. Place 0 is that of the prompts' newest token."""
        return None

    def attend(self, attention: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attend to the prompts and to what was written behind them, without copying the prompts for the sequences.

        Args:
            attention: a `SelfAttention`.
            query: [1, R, heads, D] of the newest tokens; n sequences of a prompt in consecutive rows.
            key: [L, R, groups, D] of the L tokens written; `value` likewise.
            bias: see `bias`.

        Returns:
            [1, R, heads * D]
        """
        prompt_key, prompt_value = self.computed[attention]
        num_prompt, num_groups = len(prompt_key), key.size(2)
        # [R, groups, heads of a group, D], and by prompt [B, groups, n * heads of a group, D]
        own = query[0].unflatten(1, (num_groups, -1)) * attention.core_attention.scale
        asked = own.unflatten(0, (prompt_key.size(1), -1)).transpose(1, 2)
        by_prompt = asked.flatten(2, 3) @ prompt_key.permute(1, 2, 3, 0)
        before = by_prompt.unflatten(2, asked.shape[2:4]).transpose(1, 2).flatten(0, 1)
        logits = torch.cat([before, own @ key.permute(1, 2, 3, 0)], 3)
        if bias is not None:
            logits = logits + bias.repeat_interleave(len(own) // len(bias), 0)[:, None, None]
        weights = logits.softmax(3)
        seen = weights[..., :num_prompt].unflatten(0, (prompt_key.size(1), -1)).transpose(1, 2)
        found = seen.flatten(2, 3) @ prompt_value.permute(1, 2, 0, 3)
        from_prompt = found.unflatten(2, asked.shape[2:4]).transpose(1, 2).flatten(0, 1)
        attended = from_prompt + weights[..., num_prompt:] @ value.permute(1, 2, 0, 3)
        return attended.flatten(1)[None]

    def select(self, sources: Tensor | None) -> Self:
        """The prompts `sources` [b]; None: all."""
        if sources is None:
            return self
        computed = {
            attention: by_head(key.index_select(1, sources), value.index_select(1, sources))
            for attention, (key, value) in self.computed.items()
        }
        lengths = self.lengths[sources]
        longest = int(lengths.max()) if len(lengths) else 0
        return replace(self, computed=computed, lengths=lengths, newest=self.newest[sources], longest=longest)
