"""What inner products are divided by before they become probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

#: of cosines, which lie so near to each other that a softmax of them alone tells nothing apart (SimCSE, Gao et al.
#: 2021, arXiv 2104.08821, section 3)
COSINE_TEMPERATURE = 0.05


@dataclass(kw_only=True, frozen=True)
class ScoreScalingConfig:
    """p(z | q) = softmax(s(q, z) / tau)."""

    retriever_score_scaling: bool = True
    """Divide scores by the square root of the embedding size (Sachan et al. 2021); vectors of length 1 only if a
    temperature is given, as their size changes no score."""
    temperature: float | None = None
    """Divide scores by this as well; default: 1, or 0.05 in the place of score scaling where vectors have length 1."""

    def over(self, is_unit: bool) -> Self:
        """With what is not given.

        Args:
            is_unit: vectors have length 1, so that scores are cosines.
        """
        if self.temperature is not None:
            return self
        if is_unit and self.retriever_score_scaling:
            return replace(self, retriever_score_scaling=False, temperature=COSINE_TEMPERATURE)
        return replace(self, temperature=1.0)

    def score_divisor(self, dimension: int) -> float:
        """tau, for vectors of `dimension`; a temperature that is not given is 1."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return temperature * (math.sqrt(dimension) if self.retriever_score_scaling else 1.0)
