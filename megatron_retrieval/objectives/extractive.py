"""The loss of extractive readers: the span of the answer in the positive passage, and the choice of that passage."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_retrieval.types.extractive import SpanLogits
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Mean, Rate

#: what `extractive_loss` reports beside the loss
METRICS: dict[str, type[Mean]] = {
    "span_loss": Mean,
    "selection_loss": Mean,
    "span_accuracy": Mean,
    "selection_accuracy": Mean,
    "accuracy": Rate,
}


def answer_log_likelihoods(logits: SpanLogits, is_text: Tensor, spans: Tensor) -> Tensor:
    """The log-likelihood of the answer from each passage separately.

        log p(a | q, z) = log sum_{(s, e) in answers(z)} P_start(s | z) P_end(e | z)

    P_start and P_end are softmaxes over the text of z. ORQA (arXiv 1906.00300, section 4) and REALM (arXiv 2002.08909,
    section 3.1) sum it over the retrieved passages; the likelihood of a span is DPR's.

    Args:
        logits: of P passages.
        is_text: [P, T] bool, tokens that an answer may consist of.
        spans: [P, A, 2] int64, first and last column of each occurrence, at least one in every passage; -1 where there
            are fewer than A.

    Returns:
        [P] float32.
    """
    starts, ends = (_log_softmax(values, is_text) for values in (logits.starts, logits.ends))
    return occurrence_log_likelihoods(starts, ends, spans).logsumexp(1)


def extractive_loss(
    logits: SpanLogits,
    is_text: Tensor,
    is_real: Tensor,
    spans: Tensor,
    num_questions: int,
    *,
    marginal: bool = True,
) -> LossOutput:
    """Negative log-likelihood of the answer's span and of its passage.

        loss = -1/B * sum_i [ log sum_{(s, e) in answers(z_i+)} P_start(s | z_i+) P_end(e | z_i+)  +  log P(z_i+) ]

    P_start and P_end are softmaxes over the text of the positive passage z+, P over the K passages of the question
    (DPR, arXiv 2004.04906, section 6.1). The likelihood is summed over all occurrences of an answer; with
    `marginal=False` only the likeliest counts.

    Args:
        logits: of the n * K passages of n questions, the positive the first of each K.
        is_text: [n * K, T] bool, tokens that an answer may consist of.
        is_real: [n, K] bool, False for fillers; every question's first passage is real.
        spans: [n, A, 2] int64, first and last column of each occurrence in the positive; -1 where there are fewer.
        num_questions: B, real questions in the global batch.

    Returns:
        This rank's part of the loss and of the metrics: summed over ranks they are means over the global batch.
        `span_loss` and `selection_loss`: the two parts. `span_accuracy`: the likeliest start and end in the positive
        are those of an answer. `selection_accuracy`: the positive is the likeliest passage. `accuracy`: both.
    """
    stride = is_real.size(1)
    starts, ends = (_log_softmax(values[::stride], is_text[::stride]) for values in (logits.starts, logits.ends))
    found = occurrence_log_likelihoods(starts, ends, spans)
    span_losses = -(found.logsumexp(1) if marginal else found.amax(1))
    selection = _log_softmax(logits.selection.view_as(is_real), is_real)
    selection_losses = -selection[:, 0]
    with torch.no_grad():
        best = torch.stack([starts.argmax(1), ends.argmax(1)], 1)
        is_found = (spans == best[:, None]).all(2).any(1)
        is_selected = selection.argmax(1) == 0
        values = {
            "span_loss": span_losses,
            "selection_loss": selection_losses,
            "span_accuracy": is_found.float(),
            "selection_accuracy": is_selected.float(),
            "accuracy": (is_found & is_selected).float(),
        }
        metrics = {name: METRICS[name](each.sum() / num_questions, num_questions) for name, each in values.items()}
    return LossOutput((span_losses + selection_losses).sum() / num_questions, metrics)


def occurrence_log_likelihoods(starts: Tensor, ends: Tensor, spans: Tensor) -> Tensor:
    """log P_start(s) + log P_end(e) of each occurrence: [n, T] twice and [n, A, 2] -> [n, A], -inf for fillers."""
    columns = spans.clamp(min=0)
    likelihoods = starts.gather(1, columns[..., 0]) + ends.gather(1, columns[..., 1])
    return likelihoods.masked_fill(spans[..., 0] < 0, float("-inf"))


def _log_softmax(values: Tensor, is_candidate: Tensor) -> Tensor:
    return values.masked_fill(~is_candidate, float("-inf")).log_softmax(1)
