"""An encoder-decoder of BERT's layers and WordPiece, whose weights may start from a BERT's (Rothe et al. 2020,
arXiv 1907.12461): post-norm, absolute positions, the T5 that Megatron and EMDR2 (arXiv 2106.05346) train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.attention import causal_bias
from megatron_retrieval.models.bert import BertConfig, BertEncoder
from megatron_retrieval.models.engine import num_real_rows, vocab_parallel_logits
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.models.layer_inputs import LayerInputs, TokenCache
from megatron_retrieval.models.layers import transformer_layer
from megatron_retrieval.models.memory import Memory
from megatron_retrieval.models.sharding import mark_padded
from megatron_retrieval.parallel.topology import ProcessTopology


@dataclass(kw_only=True, frozen=True)
class BertSeq2SeqConfig(BertConfig):
    """Shape and regularisation of a BERT encoder with a decoder of the same width."""

    decoder_num_layers: int | None = None
    """Transformer layers of the decoder; default: as many as the encoder has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_decoder_layers <= self.num_layers:
            raise ConfigError(
                f"--decoder-num-layers {self.decoder_num_layers}: must be from 1 to {self.num_layers}, the layers of "
                "the encoder, which the decoder's start from."
            )

    @property
    def num_decoder_layers(self) -> int:
        """Transformer layers of the decoder."""
        return self.num_layers if self.decoder_num_layers is None else self.decoder_num_layers


class BertSeq2Seq(nn.Module):
    """An `EncoderDecoder` whose output layer shares the word embeddings and has its own bias.

    Args:
        config: shape of the model.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations.
        start_id: first token of decoded sequences, [CLS].
        end_id: their last token, [SEP].
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self,
        config: BertSeq2SeqConfig,
        topology: ProcessTopology,
        dtype: torch.dtype = torch.float32,
        *,
        start_id: int,
        end_id: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.start_id, self.end_id = config, start_id, end_id
        self._groups = topology.groups
        self.bert = BertEncoder(config, topology, dtype)
        self.decoder = BertDecoder(config, self.bert, topology.groups)
        num_rows = self._word_embeddings.size(0)
        self._num_real = num_real_rows(config.vocab_size, num_rows, topology.tp_rank)
        self.output_bias = nn.Parameter(torch.zeros(num_rows))
        set_tensor_model_parallel_attributes(self.output_bias, is_parallel=True, dim=0, stride=1)
        mark_padded(self.output_bias, config.vocab_size)
        self.to(dtype)
        initialise_normal(self, topology, std=config.init_method_std, seed=seed)
        self.to(topology.device)

    @property
    def encoder(self) -> BertEncoder:
        """Token ids to hidden states."""
        return self.bert

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] decoder states -> [..., V / tensor-parallel size] float32, see `EncoderDecoder`."""
        return vocab_parallel_logits(states, self._word_embeddings, self.output_bias, self._num_real, self._groups)

    @property
    def _word_embeddings(self) -> Tensor:
        weight: Tensor = self.bert.embedding.word_embeddings.weight
        return weight


class BertDecoder(nn.Module):
    """Previous tokens and a memory to hidden states that predict the next tokens.

    Args:
        encoder: the decoder shares its embeddings.
    """

    def __init__(self, config: BertSeq2SeqConfig, encoder: BertEncoder, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.embedding, self._tp_group = encoder.embedding, groups.tp
        self.head_width: int = encoder.config.kv_channels
        recompute = config.recompute_granularity == "full"
        self.layers = nn.ModuleList(
            transformer_layer(encoder.config, groups, norm_place="after", is_decoder=True, recompute=recompute)
            for _ in range(config.num_decoder_layers)
        )

    def forward(self, ids: Tensor, memory: Memory, cache: TokenCache | None = None) -> Tensor:
        """See `Decoder`.

        Raises:
            ConfigError: a sequence is longer than the positions.
        """
        num_seen = 0 if cache is None else cache.num_tokens
        states = self.embedding(ids, first_position=num_seen)
        bias = causal_bias(ids.size(1), num_seen, states.dtype, states.device)
        inputs = LayerInputs(bias, memory.for_rank(self._tp_group), cache)
        for layer in self.layers:
            states = layer(states, inputs)
        output: Tensor = states.transpose(0, 1)
        return output
