"""How a reader uses the retriever's scores of its passages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from megatron_retrieval.errors import ConfigError

PassageScoreUse = Literal["none", "bias", "marginal"]


@dataclass(kw_only=True, frozen=True)
class PassageScoreConfig:
    """How a reader trained end to end uses passage scores; saved with it.

    p(z | q) is the softmax of the scores, divided by `passage_score_divisor`, over a question's passages.
    """

    passage_score_use: PassageScoreUse = "none"
    """none: ignored; an extractive reader weighs passages by its own scores. bias: passages are read jointly, with
    p(z | q) in the decoder's attention (Joint Top-k). marginal: passages are read separately, and answers are weighed
    by p(z | q) (Individual Top-k)."""
    passage_score_weight: float = 1.0
    """Factor of log p(z | q) in the decoder's attention."""
    passage_score_divisor: float = 1.0
    """Divisor of scores before the softmax."""

    def __post_init__(self) -> None:
        uses = get_args(PassageScoreUse)
        if self.passage_score_use not in uses:
            raise ConfigError(f"the use of passage scores {self.passage_score_use!r} is none of {', '.join(uses)}.")
        if not self.passage_score_divisor > 0:
            raise ConfigError(f"the divisor of passage scores must be above 0, not {self.passage_score_divisor}.")
