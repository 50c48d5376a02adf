"""A reader that scores whole spans: what its first and its last token say is judged together (Lee et al. 2019, ORQA,
arXiv 1906.00300, section 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.pair_encoder import PairEncoder
from megatron_retrieval.types.extractive import ExtractivePassages, PairLogits

#: width of the projections of a span's first and last token
SPAN_WIDTH = 256
#: most tokens of a span
LONGEST_SPAN = 10
_NORM_EPSILON = 1e-12


class SpanReader(PairEncoder):
    """An encoder over question and passage, with a head over pairs of tokens: w . LN(ReLU(W_s h_s + W_e h_e))."""

    first: nn.Linear
    last: nn.Linear
    norm: nn.LayerNorm
    score: nn.Linear

    def heads(self, width: int, dtype: torch.dtype) -> dict[str, nn.Module]:
        """See PairEncoder."""
        return {
            "first": nn.Linear(width, SPAN_WIDTH, dtype=dtype),
            "last": nn.Linear(width, SPAN_WIDTH, bias=False, dtype=dtype),
            "norm": nn.LayerNorm(SPAN_WIDTH, _NORM_EPSILON, dtype=dtype),
            "score": nn.Linear(SPAN_WIDTH, 1, bias=False, dtype=dtype),
        }

    def forward(self, passages: ExtractivePassages) -> PairLogits:
        """P passages of T tokens -> logits of their spans; they are undefined outside the text."""
        states = self.bert(passages.tokens, passages.segments)
        first, last = self.first(states), self.last(states)
        num_tokens = states.size(1)
        logits = [
            F.pad(self._scores(first[:, : num_tokens - more] + last[:, more:]), (0, more))
            for more in range(min(LONGEST_SPAN, num_tokens))
        ]
        return PairLogits(torch.stack(logits, 2))

    def _scores(self, pairs: Tensor) -> Tensor:
        """[P, T, D] -> [P, T] float32."""
        scores: Tensor = self.score(self.norm(F.relu(pairs))).float()[:, :, 0]
        return scores
