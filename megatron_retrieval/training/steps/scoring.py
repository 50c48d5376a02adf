"""What inner products are divided by before they become probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(kw_only=True, frozen=True)
class ScoreScalingConfig:
    """p(z | q) = softmax(s(q, z) / tau)."""

    retriever_score_scaling: bool = True
    """Divide scores by the square root of the embedding size (Sachan et al. 2021)."""
    temperature: float = 1.0
    """Divide scores by this as well."""

    def score_divisor(self, dimension: int) -> float:
        """tau, for vectors of `dimension`."""
        return self.temperature * (math.sqrt(dimension) if self.retriever_score_scaling else 1.0)
