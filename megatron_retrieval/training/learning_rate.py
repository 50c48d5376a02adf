"""Learning rate as a pure function of the iteration, so that a resumed run needs nothing but its number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_retrieval.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class ScheduleConfig:
    """How the learning rate changes."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the decay after the warm-up."""
    lr_warmup_fraction: float = 0.01
    """Share of the training iterations in which the rate rises linearly from 0."""
    lr_warmup_iters: int | None = None
    """Iterations of warm-up; replaces the fraction."""
    min_lr: float = 0.0
    """Rate at the last iteration."""

    def rate(self, iteration: int, train_iters: int, peak: float) -> float:
        """The learning rate of step `iteration` (from 0) of `train_iters`, with `peak` at the end of the warm-up."""
        warmup = self.lr_warmup_iters
        if warmup is None:
            warmup = math.ceil(self.lr_warmup_fraction * train_iters)
        if iteration < warmup:
            return peak * (iteration + 1) / (warmup + 1)
        if self.lr_decay_style == "constant":
            return peak
        progress = min(1.0, (iteration - warmup) / max(1, train_iters - warmup))
        remaining = 1 - progress if self.lr_decay_style == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.min_lr + (peak - self.min_lr) * remaining


def rate_multipliers(rates: Mapping[str, float | None], lr: float, flags: str) -> dict[str, float]:
    """Factors of `lr` for the rates that are given, by prefix of the parameters' names; see `Optimizer`.

    Args:
        flags: what gives the rates, as the subject and verb of the error.

    Raises:
        ConfigError: there is no rate to multiply.
    """
    chosen = {prefix: rate for prefix, rate in rates.items() if rate is not None}
    if chosen and lr <= 0:
        raise ConfigError(f"{flags} the schedule of --lr, which must be above 0.")
    return {prefix: rate / lr for prefix, rate in chosen.items()}
