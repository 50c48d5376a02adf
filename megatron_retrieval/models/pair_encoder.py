"""What the models share that read a question together with a passage: an encoder, and small heads over its states."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.parallel.topology import ProcessTopology


class PairEncoder(nn.Module, ABC):
    """An encoder of whatever family, with heads of its own.

    Args:
        config: shape of the encoder.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations; scores and logits are always float32.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self, config: EncoderShape, topology: ProcessTopology, dtype: torch.dtype = torch.float32, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.shape = config
        # the name is that of its parameters in checkpoints, whatever the family
        self.bert = config.build_encoder(topology, dtype)
        for name, head in self.heads(config.hidden_size, dtype).items():
            if isinstance(head, nn.Linear) and head.bias is not None:
                nn.init.zeros_(head.bias)
            self.add_module(name, head)
        initialise_normal(self, topology, std=config.init_method_std, seed=seed)
        self.to(topology.device)

    @abstractmethod
    def heads(self, width: int, dtype: torch.dtype) -> dict[str, nn.Module]:
        """The heads by name; small, hence replicated on all tensor-parallel ranks."""
