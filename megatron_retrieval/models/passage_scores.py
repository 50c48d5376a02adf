"""How a reader uses the retriever's scores of its passages, and how it answers from passages read one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from megatron_retrieval.config.checks import Checked
from megatron_retrieval.errors import ConfigError

PassageScoreUse = Literal["none", "bias", "marginal", "token", "logit"]
AnswerFrom = Literal["concatenated", "sequence", "token"]
MarginalDecoding = Literal["fast", "thorough", "token"]


@dataclass(kw_only=True, frozen=True)
class PassageScoreConfig:
    """How a reader trained end to end uses passage scores; saved with it.

    p(z | q) is the softmax of the scores, divided by `passage_score_divisor`, over a question's passages.
    """

    passage_score_use: PassageScoreUse = "none"
    """none: ignored; an extractive reader weighs passages by its own scores. bias: passages are read jointly, with
    p(z | q) in the decoder's attention (Joint Top-k). marginal: passages are read separately, and answers are weighed
    by p(z | q) (Individual Top-k, RAG-Sequence). token: they are read separately, and the next token's probabilities
    are weighed by p(z | q) (RAG-Token). logit: spans of all passages compete, with the score as part of their logits
    (ORQA)."""
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


@dataclass(kw_only=True, frozen=True)
class MarginalDecodingConfig(Checked):
    """Which likelihood answers are searched by where passages are several (RAG, arXiv 2005.11401, section 2.5)."""

    answer_from: AnswerFrom | None = None
    """concatenated: all passages are read together. sequence: each for itself, and answers are weighed by p(z | q)
    (RAG-Sequence). token: each for itself, and the probabilities of the next token are weighed by p(z | q) (RAG-Token).
    Default: as the reader was trained."""
    marginal_decoding: MarginalDecoding | None = None
    """fast: of the answers found for each passage, the likeliest, summed over the passages whose search found it.
    thorough: summed over all passages, each of which reads every answer. token: one search over the mixture of the
    passages' next tokens. Default: token where answers are from tokens, else fast."""

    def resolved(self, scores: PassageScoreConfig) -> Self:
        """With the defaults of a reader that was trained to use scores in this way; `marginal_decoding` stays None
        where passages are read together.

        Raises:
            ConfigError: the two contradict.
        """
        source, decoding = self.answer_from, self.marginal_decoding
        if source is None:
            trained: dict[PassageScoreUse, AnswerFrom] = {"marginal": "sequence", "token": "token"}
            source = trained.get(scores.passage_score_use, "concatenated")
            if decoding is not None:
                source = "token" if decoding == "token" else "sequence"
        if decoding is None and source != "concatenated":
            decoding = "token" if source == "token" else "fast"
        if decoding is not None and (source == "concatenated" or (source == "token") != (decoding == "token")):
            raise ConfigError(
                f"--answer-from {source} and --marginal-decoding {decoding} contradict: fast and thorough are for "
                "sequence, token is for token, and concatenated passages need none."
            )
        return replace(self, answer_from=source, marginal_decoding=decoding)
