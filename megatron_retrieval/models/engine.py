"""The configuration of megatron-core's layers, and word embeddings and logits sharded over the vocabulary."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.gradient_buffer import adds_in_place, look_up
from megatron_retrieval.models.linear import linear
from megatron_retrieval.models.sharding import mark_padded
from megatron_retrieval.parallel.determinism import is_deterministic

VOCAB_MULTIPLE = 128  # the same padded vocabulary at every usual tensor-parallel size


def engine_config(
    *, tp_size: int, dtype: torch.dtype, num_attention_heads: int, ffn_hidden_size: int, **settings: Any
) -> TransformerConfig:
    """The configuration of megatron-core's layers.

    Args:
        settings: further fields of `TransformerConfig`.

    Raises:
        ConfigError: the tensor-parallel size does not divide the heads and the feed-forward units.
    """
    num_groups = settings.get("num_query_groups", num_attention_heads)
    if num_groups % tp_size or ffn_hidden_size % tp_size:
        heads = f"{num_attention_heads} attention heads"
        heads = heads if num_groups == num_attention_heads else f"the {num_groups} groups of {heads}"
        common = math.gcd(num_groups, ffn_hidden_size)
        sizes = " or ".join(str(size) for size in range(1, common + 1) if common % size == 0)
        raise ConfigError(
            f"--tensor-model-parallel-size {tp_size} does not divide {heads} and {ffn_hidden_size} feed-forward units; "
            f"choose {sizes}."
        )
    return TransformerConfig(
        num_attention_heads=num_attention_heads,
        ffn_hidden_size=ffn_hidden_size,
        tensor_model_parallel_size=tp_size,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        # weights are built on the CPU, where megatron-core also marks how each is sharded
        use_cpu_initialization=True,
        init_method=leave_uninitialised,
        output_layer_init_method=leave_uninitialised,
        embedding_init_method=leave_uninitialised,
        deterministic_mode=is_deterministic(),
        cuda_graph_scope=[],  # the whole layer, as by default, but without a warning
        **settings,
    )


def word_embeddings(
    vocab_size: int, config: TransformerConfig, groups: ProcessGroupCollection
) -> VocabParallelEmbedding:
    """[B, T] ids -> [B, T, D]; the rows are sharded over the tensor-parallel ranks, padded to a common multiple."""
    embedding = WordEmbeddings(
        padded_vocab_size(vocab_size, groups.tp.size()),
        config.hidden_size,
        init_method=leave_uninitialised,
        config=config,
        tp_group=groups.tp,
    )
    mark_padded(embedding.weight, vocab_size)
    return embedding


class WordEmbeddings(VocabParallelEmbedding):
    """The parent makes a gradient of all rows in every backward pass."""

    def forward(self, input_: Tensor) -> Tensor:
        """[...] int64 -> [..., D]."""
        if self.tp_group.size() == 1 and torch.is_grad_enabled() and adds_in_place(self.weight):
            return look_up(input_, self.weight)
        embedded: Tensor = super().forward(input_)
        return embedded


def vocab_parallel_logits(
    states: Tensor, matrix: Tensor, bias: Tensor | None, num_real: int, groups: ProcessGroupCollection
) -> Tensor:
    """[..., D] states -> [..., V / tensor-parallel size] float32 logits of this rank's part of the vocabulary.

    Args:
        matrix: [V / tensor-parallel size, D].
        num_real: rows that have a token; logits of the others are the lowest number.
    """
    # every rank's part of the vocabulary contributes to the gradient of the states: it is summed over ranks
    states = copy_to_tensor_model_parallel_region(states, group=groups.tp)
    logits = linear(states, matrix, bias, training=False).float()
    if num_real < logits.size(-1):
        logits[..., num_real:] = torch.finfo(logits.dtype).min
    return logits


def padded_vocab_size(vocab_size: int, tp_size: int) -> int:
    """Total rows of all ranks, with padding."""
    multiple = math.lcm(VOCAB_MULTIPLE, tp_size)
    return math.ceil(vocab_size / multiple) * multiple


def num_real_rows(vocab_size: int, rows_per_rank: int, tp_rank: int) -> int:
    """Number of a rank's first rows that have a token; the others are padding."""
    return min(max(vocab_size - tp_rank * rows_per_rank, 0), rows_per_rank)


def leave_uninitialised(weight: Tensor) -> None:
    """Set to zero: megatron-core's initialisation depends on the tensor-parallel size; see `models.initialise`."""
    weight.zero_()
