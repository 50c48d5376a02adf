"""Chunked cross-attention (Borgeaud et al. 2022, arXiv 2112.04426, section 2.4): which tokens read which neighbours.

With chunks of m tokens, all counts from 0, the token at t reads the neighbours of chunk floor((t + 1) / m) - 1 from
slot (t + 1) mod m; tokens before m - 1 read none. The last token of a chunk is the first that may see what was
retrieved for it, since it predicts the first token of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.layers import NORM_NAMES, Layer, Part, norm
from megatron_retrieval.models.memory import CrossAttending, EncodedMemory, KeysAndValues
from megatron_retrieval.models.multi_head_attention import CrossAttention


def positions_of_chunks(starts: Tensor, chunk_length: int) -> Tensor:
    """[C] positions of chunks' first tokens in their texts -> [m, C] positions of all of their tokens."""
    return starts + torch.arange(chunk_length, device=starts.device)[:, None]


def reading_positions(starts: Tensor, chunk_length: int) -> Tensor:
    """[C] positions of chunks' first tokens in their texts -> [m, C] positions of the tokens that read the chunks'
    neighbours, by slot; texts may end before."""
    return positions_of_chunks(starts, chunk_length) + chunk_length - 1


def packed_positions(positions: Tensor, texts: Tensor, lengths: Tensor) -> Tensor:
    """Places among the N packed tokens of a batch.

    Args:
        positions: [m, C] in the text of each chunk.
        texts: [C] that text.
        lengths: [B] of all texts.

    Returns:
        [m, C]; N where the text has no such position.
    """
    starts = lengths.cumsum(0) - lengths
    return (starts[texts] + positions).masked_fill(positions >= lengths[texts], int(lengths.sum()))


@dataclass(frozen=True)
class PlacedMemory:
    """Sources that are read by some of N packed tokens each; see `ReadMemory`. Tokens that read none get zeros.

    Attributes:
        encoded: S sources.
        places: [L, R] int64 on the device, the tokens that read: L of each of R = S * n sequences, n for each source in
            consecutive rows. Each token once, N where there is none.
    """

    encoded: EncodedMemory
    places: Tensor

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """See ReadMemory."""
        return self.encoded.tensors

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> PlacedMemory:
        """See ReadMemory."""
        return replace(self, encoded=self.encoded.with_tensors(tensors))

    def read(self, attention: CrossAttending, query: Tensor) -> Tensor:
        """See ReadMemory; [N, 1, heads, width] -> [N, 1, heads * width]."""
        places = self.places.flatten()
        asked = query[:, 0].index_select(0, places.clamp(max=len(query) - 1))
        found = self.encoded.read(attention, asked.unflatten(0, self.places.shape)).flatten(0, 1)
        return found.new_zeros(len(query) + 1, found.size(1)).index_copy(0, places, found)[:-1, None]


class ChunkedCrossAttention(CrossAttention):
    """Cross-attention that is left out where nothing was retrieved.

    Args:
        is_gated: outputs are multiplied by the tanh of a learned number, 0 at first (Alayrac et al. 2022, arXiv
            2204.14198).
        has_null: a learned key and value stand behind those of every source.
        memory_size: see `CrossAttention`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        groups: ProcessGroupCollection,
        *,
        is_gated: bool,
        has_null: bool = False,
        memory_size: int | None = None,
    ) -> None:
        super().__init__(config, groups, memory_size=memory_size)
        self.gate = nn.Parameter(torch.zeros(1)) if is_gated else None
        self.null: nn.Parameter | None = None
        if has_null:  # a row for each group of this rank
            self.null = nn.Parameter(torch.zeros(self.linear_kv.weight.size(0), 1).view(-1, 2 * self.head_width))
            set_tensor_model_parallel_attributes(self.null, is_parallel=True, dim=0, stride=1)

    def forward(self, states: Tensor, inputs: LayerInputs) -> Tensor:
        """[L, R, D] -> [L, R, D]; zeros without a memory."""
        if inputs.memory is None:
            return torch.zeros_like(states)
        output = super().forward(states, inputs)
        # behind the sum over ranks: before it, a rank would have its own part of the gradient only
        return output if self.gate is None else output * self.gate.tanh()

    def keys_and_values(self, states: Tensor) -> KeysAndValues:
        """See CrossAttention; of one token more where there is a null key."""
        key, value = super().keys_and_values(states)
        if self.null is None:
            return key, value
        null_key, null_value = self.null.unflatten(1, (2, -1)).expand(1, key.size(1), -1, -1, -1).unbind(3)
        return torch.cat([key, null_key]), torch.cat([value, null_value])


def add_cross_attention(
    layer: nn.Module,
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    *,
    is_gated: bool,
    has_null: bool = False,
    memory_size: int | None = None,
) -> None:
    """Let a `Layer` read between self-attention and feed-forward network."""
    assert isinstance(layer, Layer)
    module = ChunkedCrossAttention(config, groups, is_gated=is_gated, has_null=has_null, memory_size=memory_size)
    layer.insert(1, Part("cross_attention", module, NORM_NAMES["cross_attention"], norm(config), "before"))
