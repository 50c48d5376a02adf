"""What an objective of end-to-end training is, and the settings that only some have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from megatron_retrieval.config.checks import Bounds, Checked, PositiveFloat
from megatron_retrieval.models.passage_scores import PassageScoreUse
from megatron_retrieval.objectives.masked_tokens import MaskMarginal
from megatron_retrieval.training.steps.readings import Pass
from megatron_retrieval.types.losses import LossOutput


@dataclass(kw_only=True, frozen=True)
class ObjectiveConfig(Checked):
    """Settings that only some objectives have."""

    distillation_temperature: PositiveFloat = 1.0
    """distillation: what the reader's log-likelihoods are divided by before their softmax is the retriever's target."""
    label_smoothing: Annotated[float, Bounds(least=0, below=1)] = 0.0
    """individual-topk and rag-token: share of every label that is spread over the vocabulary, in the reader's own
    likelihoods or, with rag-token, in those of the mixture."""
    emdr2_dropout: bool = True
    """emdr2: the reader that the retriever learns from drops activations, as in its authors' code; off: it does not, as
    in distillation."""
    mask_marginal: MaskMarginal = "token"
    """realm: likelihoods are summed over passages for every masked token, and tokens weigh the same, as in its authors'
    code (token); or for all that is masked in a text, and texts weigh the same, as in the paper (span)."""
    span_normalization: Literal["global", "passage"] = "global"
    """orqa: spans of all passages compete, as in ORQA (global); or those of each passage, and passages are weighed by
    p(z | q), as REALM's paper writes (passage)."""


#: `(reading, scores [n, K], score weight [1], questions of the global batch, settings)` to this rank's part of it.
#: The reading has the passes that the objective needs; scores are s(q, z) / tau.
Loss = Callable[[Any, Tensor, Tensor, int, ObjectiveConfig], LossOutput]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective of end-to-end training.

    Attributes:
        name: the value of `--objective`.
        about: what the reader and the retriever learn from, in one clause.
        loss: see `Loss`.
        needs: passes of the reader that the loss asks for.
        trains_retriever: False: the loss has no gradient for the retriever, which then keeps its weights.
        trains_reader: likewise of the reader.
        smooths: the loss minds `ObjectiveConfig.label_smoothing`, for which the reader needs the pass "smoothed".
        counts_tokens: its loss is a mean over tokens of the targets, which the step counts.
        score_use: what a reader trained with this objective does with the scores of passages when it answers; or that
            by the settings.
    """

    name: str
    about: str
    loss: Loss
    needs: frozenset[Pass]
    trains_retriever: bool = True
    trains_reader: bool = True
    smooths: bool = False
    counts_tokens: bool = False
    score_use: PassageScoreUse | Callable[[ObjectiveConfig], PassageScoreUse]

    def use_of_scores(self, settings: ObjectiveConfig) -> PassageScoreUse:
        """`score_use` with these settings."""
        return self.score_use(settings) if callable(self.score_use) else self.score_use
