"""T5 (Raffel et al. 2020, arXiv 1910.10683): versions 1.0 and 1.1, and what is fine-tuned from them, as Flan."""

from __future__ import annotations

from typing import ClassVar

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding, set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.attention import padding_bias
from megatron_retrieval.models.engine import num_real_rows, vocab_parallel_logits, word_embeddings
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.models.relative_bias import RelativeBias
from megatron_retrieval.models.score_attention import ScoreForm
from megatron_retrieval.models.seq2seq_attention import DecoderCache
from megatron_retrieval.models.seq2seq_layers import PreNormLayer, norm, run_layers
from megatron_retrieval.models.sharding import mark_padded
from megatron_retrieval.models.t5_config import T5Config, t5_engine_config, t5_initial_std
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch

#: padding, and the token that decoders start from
PAD_ID = 0


class T5(nn.Module):
    """An encoder-decoder.

    Args:
        config: its shape.
        topology: parameters are laid out for its tensor-parallel group and stand on its device.
        dtype: of parameters and activations.
        seed: names the initial weights, which are equal at any tensor-parallel size.
    """

    #: what decoded sequences begin and end with
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
            decoder_ids: [B * n, L] int64, n sequences for each source, side by side; see `shift_right`.
            places: [M] int64, each row * L + column of `decoder_ids`: where logits are wanted; default: everywhere.

        Returns:
            [M, V / tensor-parallel size] float32 (default: [B * n, L, V / tensor-parallel size]), as `logits`.
        """
        encoded = self.encoder(tokens)
        key_bias = padding_bias(tokens.lengths, tokens.ids.size(1), encoded.dtype)
        states = self.decoder(decoder_ids, encoded, key_bias)
        return self.logits(states if places is None else states.flatten(0, 1)[places])

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] decoder states -> [..., V / tensor-parallel size] float32, this rank's part of the (padded)
        vocabulary; entries beyond `vocab_size` are the lowest number."""
        matrix = self.output
        if matrix is None:
            matrix, states = self.embedding.weight, states * self.config.hidden_size**-0.5
        return vocab_parallel_logits(states, matrix, None, self._num_real, self._groups)


class _Stack(nn.Module):
    """What encoder and decoder have in common.

    Args:
        embedding: word embeddings, which the two share.
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
        num_layers = config.num_decoder_layers if self.is_decoder else config.num_layers
        self.layers = nn.ModuleList(
            PreNormLayer(engine, groups, number + 1, is_decoder=self.is_decoder) for number in range(num_layers)
        )
        self.final_layernorm = norm(engine)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self._recompute = config.recompute_granularity == "full"

    def _embed(self, ids: Tensor) -> Tensor:
        """[B, T] ids -> [T, B, D]."""
        embedded: Tensor = self.dropout(self.embedding(ids.t()))
        return embedded

    def _run(
        self,
        states: Tensor,
        bias: Tensor,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
        cache: DecoderCache | None = None,
        form: ScoreForm = "mask",
    ) -> Tensor:
        """[T, B, D] -> [B, T, D]."""
        recompute = self._recompute and self.training and cache is None
        states = run_layers(self.layers, states, bias, memory, memory_bias, cache=cache, form=form, recompute=recompute)
        output: Tensor = self.dropout(self.final_layernorm(states)).transpose(0, 1)
        return output


class T5Encoder(_Stack):
    """Token ids to hidden states."""

    is_decoder = False

    def forward(self, batch: TokenBatch) -> Tensor:
        """[B, T] ids -> [B, T, D] hidden states in the model's dtype; those at padding positions mean nothing."""
        num_tokens = batch.ids.size(1)
        bias = self.relative_bias(num_tokens, num_tokens)
        padding = padding_bias(batch.lengths, num_tokens, bias.dtype)
        return self._run(self._embed(batch.ids), bias if padding is None else bias + padding)


class T5Decoder(_Stack):
    """Tokens so far and encoder states to hidden states that tell the next tokens."""

    is_decoder = True

    def forward(
        self,
        ids: Tensor,
        states: Tensor | None,
        key_bias: Tensor | None = None,
        cache: DecoderCache | None = None,
        form: ScoreForm = "mask",
    ) -> Tensor:
        """Decode.

        Args:
            ids: [B * n, L] int64, n sequences for each source, side by side; only the new tokens where there is a
                cache. Rows may be padded on the right: earlier tokens do not see later ones.
            states: [B, T, D] encoder states; None where the cache has seen them.
            key_bias: [B, 1, 1, T] added to the cross-attention logits of every head, layer and token: the lowest
                number at padding (`padding_bias`), a score elsewhere; its gradient is right at any tensor-parallel
                size. Given anew with every call.
            cache: see `new_cache`; filled in place.
            form: in which `key_bias` is added, see `score_attention`; where there is a cache, in all calls the same.

        Returns:
            [B * n, L, D]
        """
        num_seen = 0 if cache is None else cache.num_tokens
        bias = self.relative_bias(ids.size(1), num_seen + ids.size(1), num_seen)
        if key_bias is not None:
            # each rank's heads ask something of the bias: its gradient is the sum over ranks
            key_bias = copy_to_tensor_model_parallel_region(key_bias, group=self._tp_group)
        return self._run(self._embed(ids), bias, states, key_bias, cache, form)

    def new_cache(self) -> DecoderCache:
        """An empty cache for generation: the first call takes the start token and the encoder states."""
        return DecoderCache(len(self.layers))


def shift_right(labels: Tensor, start_id: int = PAD_ID) -> Tensor:
    """What the decoder reads to predict `labels` [B, L]: the start token and then all but the last label; padding
    labels (negative) become padding."""
    return F.pad(labels[:, :-1], (1, 0), value=start_id).clamp(min=PAD_ID)
