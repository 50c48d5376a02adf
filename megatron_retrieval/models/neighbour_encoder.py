"""The encoder of neighbours: each of them is read whole, and conditioned on the chunk that it was found for."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from torch import Tensor, nn

from megatron_retrieval.models.attention import additive, padding_bias
from megatron_retrieval.models.causal_config import causal_engine_config
from megatron_retrieval.models.chunked_attention import PlacedMemory, add_cross_attention
from megatron_retrieval.models.dropout import Dropout
from megatron_retrieval.models.engine import word_embeddings
from megatron_retrieval.models.exact_bias import ExactBias
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.layers import LayerStack, norm, transformer_layer
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.packing import Packing, pack
from megatron_retrieval.models.relative_bias import RelativeBias
from megatron_retrieval.models.retro_config import RelativePositions, RetroShape
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.neighbours import Neighbours
from megatron_retrieval.types.tokens import TokenBatch, to_device

#: of distances between chunks and neighbours
NUM_BUCKETS, MAX_DISTANCE = 32, 128


class NeighbourEncoder(nn.Module):
    """Tokens of neighbours to the memories that the decoder's layers read.

    Args:
        embedding: the model's, which is used where the encoder has no other width.
    """

    def __init__(self, config: RetroShape, topology: ProcessTopology, dtype: torch.dtype) -> None:
        super().__init__()
        shape, self._config = config.encoder_shape, config
        engine = causal_engine_config(shape, topology.tp_size, dtype)
        self.embedding: VocabParallelEmbedding | None = None
        if shape.hidden_size != config.hidden_size:
            self.embedding = word_embeddings(shape.vocab_size, engine, topology.groups)
        self.layers = LayerStack(
            transformer_layer(
                engine, topology.groups, norm_place="before", recompute=config.recompute_granularity == "full"
            )
            for _ in range(shape.num_layers)
        )
        for number in config.retro_encoder_cross_attention_layers:
            add_cross_attention(
                self.layers.layers[number - 1],
                engine,
                topology.groups,
                is_gated=config.retro_cca_init == "self-attention",
                memory_size=config.hidden_size,
            )
        self.chunk_layernorm = norm(causal_engine_config(config, topology.tp_size, dtype))
        self.final_layernorm, self.dropout = norm(engine), Dropout(shape.hidden_dropout)
        self.chunk_relative_bias = distances(
            config.retro_relative_positions,
            lowest=1 - config.retro_chunk_length,
            highest=config.neighbour_length - 1,
            num_heads=shape.num_attention_heads // topology.tp_size,
        )

    def forward(self, neighbours: Neighbours, chunk_states: Tensor, embedding: nn.Module) -> Tensor:
        """Encode.

        Args:
            neighbours: of C chunks, k for each.
            chunk_states: [C, m, D] the decoder's of these chunks; of any value where a chunk lacks tokens on its left.
            embedding: the model's; used unless the encoder has one of its own.

        Returns:
            [C, k * T, D'] of all neighbours of a chunk, one after the other; zero at padding.
        """
        ids, lengths = neighbours.ids.flatten(0, 1), neighbours.lengths.flatten()
        if not bool(lengths.any()):
            return chunk_states.new_zeros(len(neighbours), 0, self._config.encoder_size)
        tokens, packing = pack(TokenBatch(ids[:, : int(lengths.max())], lengths), chunk_states.device)
        states = self.dropout((self.embedding or embedding)(tokens[:, None]))
        angles = self._config.rotary(packing.columns[:, None], states.dtype)
        bias = padding_bias(lengths, packing.num_columns, states.dtype, states.device)
        memory = self._chunks(chunk_states, packing, neighbours)
        inputs = LayerInputs(bias, memory, rotary=angles, packing=packing)
        packed = self.final_layernorm(self.layers(states, inputs))
        return packing.pad(packed).transpose(0, 1).unflatten(0, (len(neighbours), -1)).flatten(1, 2)

    def _chunks(self, states: Tensor, packing: Packing, neighbours: Neighbours) -> PlacedMemory:
        """[C, m, D] as the memory of their neighbours' tokens."""
        num_columns, num_rows = packing.num_columns, packing.num_rows
        places = packing.places.new_full((num_columns * num_rows,), len(packing.places))
        places[packing.places] = torch.arange(len(packing.places), device=places.device)
        hidden = torch.arange(states.size(1)) < -neighbours.starts[:, None]
        bias = None
        if bool(hidden.any()):
            bias = additive(to_device(hidden, states.device)[:, None, None], states.dtype)
        if self.chunk_relative_bias is not None:
            # the queries of a chunk are the tokens of all of its neighbours
            num_neighbours = neighbours.ids.size(1)
            distance = self.chunk_relative_bias(num_columns, states.size(1)).repeat_interleave(num_neighbours, 2)
            bias = distance if bias is None else distance + bias
        return PlacedMemory(EncodedMemory(self.chunk_layernorm(states), bias), places.view(num_columns, num_rows))


def distances(kind: RelativePositions, *, lowest: int, highest: int, num_heads: int) -> ExactBias | RelativeBias | None:
    """A bias by the position of queries minus that of keys, which are between `lowest` and `highest`.

    Args:
        num_heads: heads of this rank.
    """
    if kind == "none":
        return None
    if kind == "exact":
        return ExactBias(lowest=lowest, highest=highest, num_heads=num_heads)
    return RelativeBias(num_buckets=NUM_BUCKETS, max_distance=MAX_DISTANCE, num_heads=num_heads, is_causal=False)
