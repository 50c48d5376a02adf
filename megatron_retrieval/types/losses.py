"""What an objective returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns: the scalar to differentiate and plain numbers to log."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
