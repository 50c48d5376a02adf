"""Data parallelism: every copy of the model gets a share of the batch; gradients are summed over the copies."""

from __future__ import annotations

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from megatron_retrieval.parallel.topology import ProcessTopology

#: megatron-core only reads from it that gradients are summed, which it calls "per token", and not averaged
_CONFIG = TransformerConfig(
    num_layers=1,
    hidden_size=1,
    num_attention_heads=1,
    calculate_per_token_loss=True,
    cuda_graph_scope=[],  # as by default, but without a warning
)


class DataParallelModel:
    """A module with fp32 gradient buffers, for all but frozen parameters, that are summed (not averaged) over
    data-parallel ranks.

    Each rank's loss is its part of a global mean, so that the summed gradient equals that of one process with the whole
    batch. Backward passes only accumulate; `reduce_gradients` communicates once per step.
    """

    def __init__(self, module: nn.Module, topology: ProcessTopology) -> None:
        self.module = module
        self._groups = topology.groups
        self.ddp = DistributedDataParallel(
            _CONFIG, DistributedDataParallelConfig(grad_reduce_in_fp32=True), module, pg_collection=topology.groups
        )
        self.ddp.broadcast_params()

    def zero_gradients(self) -> None:
        """Set the gradients to zero."""
        self.ddp.zero_grad_buffer()
        for parameter in self.module.parameters():
            # the fp32 optimizer lets .grad share memory with the buffer that backward adds it to
            parameter.grad = None

    def reduce_gradients(self) -> None:
        """Sum the accumulated gradients over data-parallel ranks."""
        finalize_model_grads([self.ddp], pg_collection=self._groups)
