"""RETRO (Borgeaud et al. 2022, arXiv 2112.04426): a causal language model that reads what was retrieved for the chunks
before; from scratch, or beside the frozen weights of one that was trained without (section 4.2)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from megatron_retrieval.models.attention import additive
from megatron_retrieval.models.causal_config import causal_engine_config
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM, CausalStack
from megatron_retrieval.models.chunked_attention import (
    PlacedMemory,
    add_cross_attention,
    packed_positions,
    positions_of_chunks,
    reading_positions,
)
from megatron_retrieval.models.layer_inputs import LayerInputs, TokenCache
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.neighbour_encoder import NeighbourEncoder, distances
from megatron_retrieval.models.packing import Packing, packed_places
from megatron_retrieval.models.retro_config import RetroShape
from megatron_retrieval.models.retro_start import copy_self_attention
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.neighbours import Neighbours
from megatron_retrieval.types.tokens import TokenBatch, to_device

#: parts of a reading layer that come before its attention to neighbours, and the others
_BEFORE, _BEHIND = slice(0, 1), slice(1, None)


@dataclass(kw_only=True, frozen=True)
class RetroConfig(RetroShape, CausalConfig):
    """Shape and regularisation of a causal language model that reads the neighbours of its chunks."""

    def initial_std(self, name: str) -> float:
        """See CausalConfig; distances count nothing at first, and outputs of zero are drawn as such."""
        is_output = name.startswith("stack.decoder.") and name.endswith(".cross_attention.linear_proj.weight")
        if "relative_bias" in name or (is_output and self.retro_cca_init == "zero"):
            return 0.0
        return super().initial_std(name)

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> RetroStack:
        """See EncoderShape."""
        return RetroStack(self, topology, dtype)


class RetroStack(CausalStack):
    """Token ids to hidden states, each of which depends on the tokens up to its own and on the neighbours of full
    chunks up to there."""

    config: RetroConfig

    def __init__(self, config: RetroConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, topology, dtype)
        engine = causal_engine_config(config, topology.tp_size, dtype)
        is_gated = config.retro_cca_init == "self-attention"
        for number in config.reading_layers:
            layer = self.decoder.layers[number - 1]
            add_cross_attention(
                layer,
                engine,
                topology.groups,
                is_gated=is_gated,
                has_null=config.retro_null_key,
                memory_size=config.encoder_size,
            )
        self.neighbour_encoder = NeighbourEncoder(config, topology, dtype)
        # a chunk and its neighbours are taken to start together, and the last token of a chunk is the first to read
        self.relative_bias = distances(
            config.retro_relative_positions,
            lowest=config.retro_chunk_length - config.neighbour_length,
            highest=2 * config.retro_chunk_length - 2,
            num_heads=config.num_attention_heads // topology.tp_size,
        )
        self.to(dtype)

    def read(
        self, batch: TokenBatch, cache: TokenCache | None = None, neighbours: Neighbours | None = None
    ) -> tuple[Tensor, Packing]:
        """See CausalStack.

        Args:
            neighbours: of full chunks of the texts, which their later tokens read; None: the model is used without.
        """
        ids, packing, inputs = self.prepared(batch, cache)
        states = self.run_below(ids, inputs)
        inputs = replace(inputs, memory=self.memory(states[:, 0], batch.lengths, neighbours))
        return self.run_above(states, inputs)[:, 0], packing

    def run_below(self, ids: Tensor, inputs: LayerInputs) -> Tensor:
        """[L, R] ids -> [L, R, D] states in the first layer that reads, behind its self-attention."""
        layers = self.decoder.layers[: self._first]
        below = chain(
            self.embedding.parameters(), layers.parameters(), self._reading.get_submodule("self_attention").parameters()
        )
        # a layer that is computed again would pass a gradient on to what is frozen
        is_trained = any(parameter.requires_grad for parameter in below)
        with contextlib.nullcontext() if is_trained else torch.no_grad():
            states = self.dropout(self.embedding(ids))
            for layer in layers:
                states = layer(states, inputs)
            below_states: Tensor = self._reading(states, inputs, _BEFORE)
            return below_states

    def run_above(self, states: Tensor, inputs: LayerInputs) -> Tensor:
        """From there on: [L, R, D] -> [L, R, D] hidden states."""
        states = self._reading(states, inputs, _BEHIND)
        for layer in self.decoder.layers[self._first + 1 :]:
            states = layer(states, inputs)
        output: Tensor = self.final_layernorm(states)
        return output

    def memory(self, states: Tensor, lengths: Tensor, neighbours: Neighbours | None) -> PlacedMemory | None:
        """What the decoder's layers read; None: nothing was retrieved.

        Args:
            states: [N, D] of the packed tokens in the first layer that reads, behind its self-attention.
            lengths: [B] of the texts, on the CPU.
        """
        found = None if neighbours is None else self.read_of(neighbours)
        if found is None or not len(found):
            return None
        length, texts, starts = self.config.retro_chunk_length, found.texts, found.starts
        # what a chunk lacks on its left is hidden, whatever stands there
        own = packed_positions(positions_of_chunks(starts, length).clamp(min=0), texts, lengths)
        places = packed_positions(reading_positions(starts, length), texts, lengths)
        encoded = self.neighbour_encoder(found, states[to_device(own.t(), states.device)], self.embedding)
        bias = self.reading_bias(found.lengths, int(found.lengths.max()), length - 1, length)
        return PlacedMemory(EncodedMemory(encoded, bias), to_device(places, states.device))

    def read_of(self, neighbours: Neighbours) -> Neighbours:
        """Those of chunks for which something is read: with a null key, all that were searched for."""
        searched = neighbours.lengths.size(1) > 0
        return neighbours.rows((neighbours.lengths > 0).any(1) | (searched and self.config.retro_null_key))

    def reading_bias(self, lengths: Tensor, width: int, first_query: int, num_queries: int) -> Tensor | None:
        """[C or 1, heads of this rank or 1, L or 1, k * T] what is added to the logits of L queries; one column more
        with a null key.

        Args:
            lengths: [C, k] of neighbours, on the CPU.
            width: T, to which they are padded.
            first_query: position of the first of them, where the first token of a neighbour is at 0.
        """
        weight = self._weight
        hidden = (torch.arange(width) >= lengths[..., None]).flatten(1)
        bias = additive(to_device(hidden, weight.device)[:, None, None], weight.dtype) if bool(hidden.any()) else None
        if self.relative_bias is not None:
            distance = self.relative_bias(num_queries, width, first_query).repeat(1, 1, 1, lengths.size(1))
            bias = distance if bias is None else distance + bias
        if bias is not None and self.config.retro_null_key:
            bias = torch.nn.functional.pad(bias, (0, 1))  # nothing hides it
        return bias

    @property
    def _first(self) -> int:
        """The first layer that reads, from 0."""
        return self.config.reading_layers[0] - 1

    @property
    def _reading(self) -> nn.Module:
        return self.decoder.layers[self._first]


class Retro(CausalLM):
    """A stack that reads neighbours, with an output layer over its vocabulary; its parameters without those that read
    have the names of a `CausalLM`'s.

    Args: see `CausalLM`.
    """

    config: RetroConfig
    stack: RetroStack

    def __init__(
        self, config: RetroConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32, *, seed: int = 0
    ) -> None:
        super().__init__(config, topology, dtype, seed=seed)
        self.begin_to_read()

    def forward(self, tokens: TokenBatch, places: Tensor, neighbours: Neighbours | None = None) -> Tensor:
        """See CausalLM.

        Args:
            neighbours: see `RetroStack.read`.
        """
        states, _ = self.stack.read(tokens, neighbours=neighbours)
        lengths = to_device(tokens.lengths, places.device)
        return self.logits(states.index_select(0, packed_places(lengths, places, tokens.ids.size(1))))

    def begin_to_read(self) -> None:
        """Copy the first weights of what reads neighbours, where they come from the rest of the model."""
        encoder = self.stack.neighbour_encoder
        if self.config.retro_cca_init == "self-attention":
            norms = encoder.chunk_layernorm, encoder.final_layernorm
            copy_self_attention(self.stack.decoder.layers, encoder.layers.layers, norms)

    def base_names(self) -> set[str]:
        """The parameters that a `CausalLM` of this shape has."""
        marks = "neighbour_encoder.", "relative_bias.", "cross_attention.", "pre_cross_attn_layernorm."
        return {name for name, _ in self.named_parameters() if not any(mark in name for mark in marks)}
