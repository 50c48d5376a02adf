"""What an objective returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from megatron_retrieval.types.metrics import Metrics


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns: the scalar to differentiate, and numbers to log, without gradient."""

    loss: Tensor
    metrics: Metrics = field(default_factory=dict)
