"""An encoder with the head of its pretraining: predicts masked tokens (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

from typing import cast

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.engine import num_real_rows
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.models.sharding import mark_padded
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch


class MaskedLanguageModel(nn.Module):
    """An encoder with a head that predicts tokens at chosen places, the same in every family but for biases that
    ModernBERT leaves out.

    Args:
        config: shape of the encoder.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self, config: EncoderShape, topology: ProcessTopology, dtype: torch.dtype = torch.float32, *, seed: int = 0
    ) -> None:
        super().__init__()
        # the name is that of its parameters in checkpoints, whatever the family
        self.bert = config.build_encoder(topology, dtype)
        self.head = MaskedLMHead(config, self._word_embeddings.size(0), topology, dtype)
        initialise_normal(self, topology, std=config.init_method_std, seed=seed)
        self.to(topology.device)

    @property
    def _word_embeddings(self) -> Tensor:
        return cast(Tensor, cast(nn.Module, self.bert).get_parameter("embedding.word_embeddings.weight"))

    def forward(self, tokens: TokenBatch, places: Tensor, segments: Tensor | None = None) -> Tensor:
        """The logits of the tokens at `places`.

        Args:
            tokens: B sequences, padded to T.
            places: [M] int64, b * T + t for row b and column t of a token.
            segments: [B, T] int64, index of the segment embedding of every token; default: 0.

        Returns:
            [M, V / tensor-parallel size] float32, this rank's part of the padded vocabulary; the lowest
            number of the model's dtype at padding entries.
        """
        states = self.bert(tokens, segments).flatten(0, 1)[places]
        logits: Tensor = self.head(states, self._word_embeddings)
        return logits


class MaskedLMHead(nn.Module):
    """Dense layer, GELU, norm, and an output layer that shares the word embeddings.

    Args:
        vocab_size_per_rank: rows of the word embeddings on this rank, padding included.
    """

    def __init__(
        self, config: EncoderShape, vocab_size_per_rank: int, topology: ProcessTopology, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._tp_group = topology.groups.tp
        self._num_real = num_real_rows(config.vocab_size, vocab_size_per_rank, topology.tp_rank)
        # small, hence replicated on all tensor-parallel ranks
        width, has_biases = config.hidden_size, config.head_biases
        self.dense = nn.Linear(width, width, bias=has_biases, dtype=dtype)
        self.norm = nn.LayerNorm(width, config.norm_epsilon, bias=has_biases, dtype=dtype)
        self.bias = nn.Parameter(torch.zeros(vocab_size_per_rank, dtype=dtype))
        if has_biases:
            nn.init.zeros_(self.dense.bias)
        set_tensor_model_parallel_attributes(self.bias, is_parallel=True, dim=0, stride=1)
        mark_padded(self.bias, config.vocab_size)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """[M, D] states and this rank's [V / tp, D] embeddings -> [M, V / tp] float32 logits."""
        transformed = self.norm(F.gelu(self.dense(states)))
        # every rank's part of the vocabulary contributes to the gradient of the states: it is summed over ranks
        transformed = copy_to_tensor_model_parallel_region(transformed, group=self._tp_group)
        # embeddings of padding entries are zero: the bias is their logit
        is_padding = torch.arange(len(self.bias), device=self.bias.device) >= self._num_real
        bias = self.bias.masked_fill(is_padding, torch.finfo(self.bias.dtype).min)
        return F.linear(transformed, word_embeddings, bias).float()
