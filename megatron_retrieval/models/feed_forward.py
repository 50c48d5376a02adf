"""The feed-forward network of a layer, sharded over tensor-parallel ranks by its units."""

from __future__ import annotations

from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_retrieval.models.dropout import dropout
from megatron_retrieval.models.engine import leave_uninitialised
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.linear import ColumnParallelLinear, RowParallelLinear


class FeedForward(nn.Module):
    """Two matrices with an activation between them; if gated, the first has the rows of the gate, then those of the
    values that it multiplies.

    Args:
        config: with the activation, whether it is gated, and whether matrices have biases.
        dropout: share of the inner units dropped in training.
    """

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection, dropout: float) -> None:
        super().__init__()
        self.is_gated, self.activation = config.gated_linear_unit, config.activation_func
        self.dropout = dropout
        num_parts = 2 if self.is_gated else 1
        self.linear_fc1 = ColumnParallelLinear(
            config.hidden_size,
            num_parts * config.ffn_hidden_size,
            config=config,
            init_method=leave_uninitialised,
            bias=config.add_bias_linear,
            stride=num_parts,
            parts=(config.ffn_hidden_size,) * num_parts,
            tp_group=groups.tp,
        )
        self.linear_fc2 = RowParallelLinear(
            config.ffn_hidden_size,
            config.hidden_size,
            config=config,
            init_method=leave_uninitialised,
            bias=config.add_bias_linear,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=groups.tp,
        )

    def forward(self, states: Tensor, _: LayerInputs | None = None) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        inner = self.linear_fc1(states)[0]
        if self.is_gated:
            gate, inner = inner.chunk(2, -1)
            inner = self.activation(gate) * inner
        else:
            inner = self.activation(inner)
        if self.training and self.dropout:
            # each rank has other units, hence the random stream that differs between tensor-parallel ranks
            with tensor_parallel.get_cuda_rng_tracker().fork():
                inner = dropout(inner, self.dropout)
        output: Tensor = self.linear_fc2(inner)[0]
        return output
