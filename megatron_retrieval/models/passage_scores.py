"""What a reader does with the scores of the passages that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from megatron_retrieval.errors import ConfigError

PassageScoreUse = Literal["none", "bias", "marginal"]


@dataclass(kw_only=True, frozen=True)
class PassageScoreConfig:
    """How a reader that was trained together with a retriever answers; saved with it.

    p(z | q) is the softmax of the scores, divided by `passage_score_divisor`, over a question's passages.
    """

    passage_score_use: PassageScoreUse = "none"
    """none: passages are read together and count alike, or as an extractive reader says; bias: they are read together,
    with p(z | q) in the decoder's attention (Joint Top-k); marginal: each is read for itself, and its answer weighs as
    much as p(z | q) (Individual Top-k)."""
    passage_score_weight: float = 1.0
    """What log p(z | q) is multiplied with in the decoder's attention."""
    passage_score_divisor: float = 1.0
    """What scores are divided by before they become probabilities."""

    def __post_init__(self) -> None:
        uses = get_args(PassageScoreUse)
        if self.passage_score_use not in uses:
            raise ConfigError(f"the use of passage scores {self.passage_score_use!r} is none of {', '.join(uses)}.")
        if not self.passage_score_divisor > 0:
            raise ConfigError(f"the divisor of passage scores must be above 0, not {self.passage_score_divisor}.")
