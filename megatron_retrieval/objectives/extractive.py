"""The loss of extractive readers: the span of the answer in the positive passage, and the choice of that passage."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.types.extractive import PairLogits, SpanLogits
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Count, Mean, Metric, Rate

#: what `extractive_loss` reports beside the loss
METRICS: dict[str, type[Mean]] = {
    "span_loss": Mean,
    "selection_loss": Mean,
    "span_accuracy": Mean,
    "selection_accuracy": Mean,
    "accuracy": Rate,
}


def answer_log_likelihoods(logits: SpanLogits | PairLogits, is_text: Tensor, spans: Tensor) -> Tensor:
    """The log-likelihood of the answer from each passage separately.

        log p(a | q, z) = log sum_{(s, e) in answers(z)} P_start(s | z) P_end(e | z)

    P_start and P_end are softmaxes over the text of z; where pairs have logits, one softmax is over all of them. ORQA
    (arXiv 1906.00300, section 4) and REALM (arXiv 2002.08909, section 3.1) sum it over the retrieved passages; the
    likelihood of a span is DPR's, or ORQA's.

    Args:
        logits: of P passages.
        is_text: [P, T] bool, tokens that an answer may consist of.
        spans: [P, A, 2] int64, first and last column of each occurrence, at least one in every passage; -1 where there
            are fewer than A.

    Returns:
        [P] float32.
    """
    if isinstance(logits, PairLogits):
        correct, total = span_log_sums(logits, is_text, spans)
        return correct - total
    starts, ends = (_log_softmax(values, is_text) for values in (logits.starts, logits.ends))
    return occurrence_log_likelihoods(starts, ends, spans).logsumexp(1)


def span_log_sums(logits: SpanLogits | PairLogits, is_text: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """What the answer weighs in each passage, and what all spans weigh there: the logs of sums of exp(logit).

    A span's logit is that of its first token plus that of its last one, or that of the pair.

    Args:
        logits: of P passages.
        is_text: [P, T] bool, tokens that an answer may consist of.
        spans: [P, A, 2] int64, first and last column of each occurrence; -1 where there are fewer than A.

    Returns:
        [P] and [P] float32; -inf where there is no occurrence, and where there is no text.
    """
    if isinstance(logits, SpanLogits):
        starts, ends = (values.masked_fill(~is_text, -torch.inf) for values in (logits.starts, logits.ends))
        found = occurrence_log_likelihoods(starts, ends, spans)
        return log_sum(found), log_sum(starts) + log_sum(ends)
    num_tokens, width = is_text.size(1), logits.spans.size(2)
    # a text is one run of columns: a span is inside where both of its ends are
    last = torch.stack([F.pad(is_text[:, more:], (0, more)) for more in range(width)], 2)
    every = logits.spans.masked_fill(~(is_text[:, :, None] & last), -torch.inf).flatten(1)
    more = spans[..., 1] - spans[..., 0]
    is_span = (spans[..., 0] >= 0) & (more < width)
    places = (spans[..., 0].clamp(0, num_tokens - 1) * width + more.clamp(0, width - 1)).masked_fill(~is_span, 0)
    return log_sum(every.gather(1, places).masked_fill(~is_span, -torch.inf)), log_sum(every)


def log_sum(values: Tensor) -> Tensor:
    """log sum exp over the last dimension; -inf, without a gradient, where every value is -inf."""
    is_none = (values == -torch.inf).all(-1)
    return values.masked_fill(is_none[..., None], 0).logsumexp(-1).masked_fill(is_none, -torch.inf)


def global_spans(scores: Tensor, is_real: Tensor, correct: Tensor, total: Tensor, num_questions: float) -> LossOutput:
    """Spans of all passages of a question compete, the score of their passage being part of their logits.

        loss = -1/B * sum_i log( sum_z e^s(q_i, z) correct(z) / sum_z e^s(q_i, z) total(z) )

    (ORQA, arXiv 1906.00300, section 5.2; REALM's paper normalises within each passage instead, and mixes by p(z | q),
    as `individual_topk` does.) A question without a correct span adds nothing.

    Args:
        scores: [n, K] s(q, z) / temperature.
        is_real: [n, K] bool, False for fillers.
        correct: [n, K], the log of the sum of exp(logit) over correct spans of a passage, see `span_log_sums`.
        total: [n, K], likewise over all spans.

    Returns:
        This rank's part: summed over ranks, means over the global batch. `num_unread_questions`: add nothing.
    """
    scores = scores.float()
    found, every = (log_sum((scores + part).masked_fill(~is_real, -torch.inf)) for part in (correct, total))
    is_unread = found == -torch.inf
    likelihoods = (found - every).masked_fill(is_unread, 0)
    loss = -likelihoods.sum() / num_questions
    metrics: dict[str, Metric] = {
        "log_likelihood": Mean(-loss.detach(), num_questions),
        "num_unread_questions": Count((is_unread & is_real.any(1)).sum()),
    }
    return LossOutput(loss, metrics)


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
