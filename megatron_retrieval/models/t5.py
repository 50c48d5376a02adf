"""T5 (Raffel et al. 2020, arXiv 1910.10683): versions 1.0 and 1.1, and models fine-tuned from them such as Flan."""

from __future__ import annotations

from typing import ClassVar

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding, set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.attention import padding_bias
from megatron_retrieval.models.dropout import Dropout
from megatron_retrieval.models.engine import num_real_rows, vocab_parallel_logits, word_embeddings
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.models.layer_inputs import LayerInputs, TokenCache
from megatron_retrieval.models.layers import norm, transformer_layer
from megatron_retrieval.models.memory import EncodedMemory, Memory
from megatron_retrieval.models.relative_bias import RelativeBias
from megatron_retrieval.models.sharding import mark_padded
from megatron_retrieval.models.t5_config import T5Config, t5_engine_config, t5_initial_std
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch

#: padding, and the first token of decoded sequences
PAD_ID = 0


class T5(nn.Module):
    """An encoder-decoder.

    Args:
        config: shape of the model.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    #: first and last token of decoded sequences
    start_id, end_id = PAD_ID, 1

    def __init__(
        self, config: T5Config, topology: ProcessTopology, dtype: torch.dtype = torch.float32, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.config, self._groups = config, topology.groups
        engine = t5_engine_config(config, topology.tp_size, dtype)
        self.embedding = word_embeddings(config.vocab_size, engine, topology.groups)
        self.encoder = T5Encoder(config, self.embedding, engine, topology.groups)
        self.decoder = T5Decoder(config, self.embedding, engine, topology.groups)
        self._num_real = num_real_rows(config.vocab_size, self.embedding.weight.size(0), topology.tp_rank)
        self.output = None
        if config.untie_embeddings_and_output_weights:
            self.output = nn.Parameter(torch.zeros_like(self.embedding.weight))
            set_tensor_model_parallel_attributes(self.output, is_parallel=True, dim=0, stride=1)
            mark_padded(self.output, config.vocab_size)
        self.to(dtype)
        initialise_normal(self, topology, std=lambda name: t5_initial_std(config, name), seed=seed)
        self.to(topology.device)

    def forward(self, tokens: TokenBatch, decoder_ids: Tensor, places: Tensor | None = None) -> Tensor:
        """The logits of next tokens.

        Args:
            tokens: B sources, padded to T.
            decoder_ids: [B * n, L] int64, n sequences per source in consecutive rows; see `shift_right`.
            places: [M] int64, row * L + column of `decoder_ids` of the tokens whose logits are computed; default: all.

        Returns:
            [M, V / tensor-parallel size] float32 (default: [B * n, L, V / tensor-parallel size]), as `logits`.
        """
        states = self.decoder(decoder_ids, EncodedMemory.of_texts(self.encoder(tokens), tokens.lengths))
        return self.logits(states if places is None else states.flatten(0, 1)[places])

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] decoder states -> [..., V / tensor-parallel size] float32, this rank's part of the (padded)
        vocabulary; the lowest number at entries beyond `vocab_size`."""
        matrix = self.output
        if matrix is None:
            matrix, states = self.embedding.weight, states * self.config.hidden_size**-0.5
        return vocab_parallel_logits(states, matrix, None, self._num_real, self._groups)


class _Stack(nn.Module):
    """The common part of encoder and decoder.

    Args:
        embedding: word embeddings, shared by the two.
        engine: configuration of the layers.
    """

    is_decoder: ClassVar[bool]

    def __init__(
        self,
        config: T5Config,
        embedding: VocabParallelEmbedding,
        engine: TransformerConfig,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__()
        self.embedding, self._tp_group, self.head_width = embedding, groups.tp, config.head_width
        self.relative_bias = RelativeBias(
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
            num_heads=config.num_attention_heads // groups.tp.size(),
            is_causal=self.is_decoder,
        )
        self.layers = nn.ModuleList(
            transformer_layer(
                engine,
                groups,
                norm_place="before",
                inner_dropout=config.hidden_dropout,
                is_decoder=self.is_decoder,
                recompute=config.recompute_granularity == "full",
            )
            for _ in range(config.num_decoder_layers if self.is_decoder else config.num_layers)
        )
        self.final_layernorm = norm(engine)
        self.dropout = Dropout(config.hidden_dropout)

    def _run(self, ids: Tensor, inputs: LayerInputs) -> Tensor:
        """[B, T] ids -> [B, T, D]."""
        states = self.dropout(self.embedding(ids.t()))
        for layer in self.layers:
            states = layer(states, inputs)
        output: Tensor = self.dropout(self.final_layernorm(states)).transpose(0, 1)
        return output


class T5Encoder(_Stack):
    """Token ids to hidden states."""

    is_decoder = False

    def forward(self, batch: TokenBatch) -> Tensor:
        """[B, T] ids -> [B, T, D] hidden states in the model's dtype; they are undefined at padding."""
        num_tokens = batch.ids.size(1)
        bias = self.relative_bias(num_tokens, num_tokens)
        padding = padding_bias(batch.lengths, num_tokens, bias.dtype, bias.device)
        return self._run(batch.ids, LayerInputs(bias if padding is None else bias + padding))


class T5Decoder(_Stack):
    """Previous tokens and a memory to hidden states that predict the next tokens."""

    is_decoder = True

    def forward(self, ids: Tensor, memory: Memory, cache: TokenCache | None = None) -> Tensor:
        """See `Decoder`."""
        num_seen = 0 if cache is None else cache.num_tokens
        bias = self.relative_bias(ids.size(1), num_seen + ids.size(1), num_seen)
        return self._run(ids, LayerInputs(bias, memory.for_rank(self._tp_group), cache))


def shift_right(labels: Tensor, start_id: int = PAD_ID) -> Tensor:
    """The decoder's input for predicting `labels` [B, L]: the start token, then all but the last label; negative labels
    become padding."""
    return F.pad(labels[:, :-1], (1, 0), value=start_id).clamp(min=PAD_ID)
