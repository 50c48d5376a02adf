"""Losses that train a retriever and a reader end to end from questions and answers.

The retriever gives every retrieved passage z of a question q the prior p(z | q), the softmax of its scores over the K
passages; the reader gives the likelihood of the answer a from one passage, or from all of them jointly. Arguments of
all losses:

    scores: [n, K] s(q, z) / temperature, computed with the present encoders.
    is_real: [n, K] bool, False for filler passages and for all passages of a filler question.
    num_questions: B, real questions in the global batch.

A question whose answer has likelihood 0 in every passage adds nothing to the loss. Results are this rank's part of the
loss and of the metrics: summed over ranks they are means over the global batch. `log_likelihood`: of the answer, under
the model that the objective trains. `prior_entropy`: of p(z | q), in nats. `posterior_divergence`: see there, mean over
questions with a likelihood above 0. `num_unread_questions`: questions that add nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Count, Mean, Metric, Rate


def individual_topk(
    scores: Tensor,
    is_real: Tensor,
    log_likelihoods: Tensor,
    num_questions: float,
    uniform: Tensor | None = None,
    smoothing: float = 0.0,
) -> LossOutput:
    """Individual Top-k: each passage is read separately; likelihoods of whole answers are summed over passages.

        loss = -1/B * sum_i log sum_z p(a_i | q_i, z) p(z | q_i)

    (Sachan et al., arXiv 2101.00408, eq. 5 and 6; RAG-Sequence, arXiv 2005.11401, section 2.1.) Labels are smoothed
    inside of the reader: with them p(a | q, z) is exp((1 - smoothing) log p(a | q, z) + smoothing * uniform).

    Args:
        log_likelihoods: [n, K] log p(a | q, z), the sum over the answer's tokens.
        uniform: [n, K], the same with every token's log-likelihood in place of the answer's, averaged over the
            vocabulary: 1/V * sum_l sum_v log p(v | a_1 .. a_(l-1), q, z); needed by smoothing alone.
        smoothing: share of the labels that is spread over the vocabulary; metrics are without it.
    """
    priors = log_priors(scores, is_real)
    answers = sum_over_passages(priors + _wide(log_likelihoods), is_real)
    if uniform is None:
        return _output(answers, priors, log_likelihoods, num_questions)
    softened = (1 - smoothing) * _wide(log_likelihoods) + smoothing * _wide(uniform)
    return _output(answers, priors, log_likelihoods, num_questions, sum_over_passages(priors + softened, is_real))


def rag_token(
    scores: Tensor,
    is_real: Tensor,
    token_log_likelihoods: Tensor,
    is_token: Tensor,
    num_questions: float,
    uniform: Tensor | None = None,
    smoothing: float = 0.0,
) -> LossOutput:
    """RAG-Token: the likelihood of each token of the answer is summed over passages.

        loss = -1/B * sum_i sum_l log sum_z p(z | q_i) p(a_il | a_i1 .. a_i(l-1), q_i, z)

    (RAG, arXiv 2005.11401, section 2.1.) Smoothed labels stand outside of the sum over passages.

    Args:
        token_log_likelihoods: [n, K, L] log p(a_l | a_1 .. a_(l-1), q, z).
        is_token: [n, L] bool, False at padding.
        uniform: [n, L], the same of all tokens: 1/V * sum_v log sum_z p(z | q) p(v | a_1 .. a_(l-1), q, z); needed by
            smoothing alone.
        smoothing: share of the labels that is spread over the vocabulary; metrics are without it.
    """
    priors = log_priors(scores, is_real)
    tokens = sum_over_passages(priors[:, :, None] + _wide(token_log_likelihoods), is_real[:, :, None])
    answers = tokens.masked_fill(~is_token, 0).sum(1)
    each = _wide(token_log_likelihoods.detach()).masked_fill(~is_token[:, None], 0).sum(2)
    if uniform is None:
        return _output(answers, priors, each, num_questions)
    spread = _wide(uniform).masked_fill(~is_token, 0).sum(1)
    return _output(answers, priors, each, num_questions, (1 - smoothing) * answers + smoothing * spread)


#: depths at which candidates with an answer are counted
MATCH_DEPTHS = (5, 10, 50, 100, 500, 1000, 5000)


def early_loss(scores: Tensor, is_real: Tensor, holds: Tensor, num_questions: float) -> LossOutput:
    """ORQA's early updates: the retriever learns which of many candidates hold the answer, read or not.

        loss = -1/B * sum_i log sum_{z holds a_i} p(z | q_i),   p over all candidates

    (Lee et al. 2019, arXiv 1906.00300, section 5.3.) A question that no candidate answers adds nothing.

    Args:
        scores: [n, C] of the candidates, best first by the index.
        holds: [n, C] bool.

    Returns:
        See the module; metrics: `early_log_likelihood`, and `match@k`, the share of questions that one of the first k
        candidates answers.
    """
    likelihoods = torch.zeros_like(scores).where(holds, -torch.inf)
    found = individual_topk(scores, is_real, likelihoods, num_questions)
    metrics: dict[str, Metric] = {"early_log_likelihood": found.metrics["log_likelihood"]}
    for depth in MATCH_DEPTHS:
        if depth <= scores.size(1):
            metrics[f"match@{depth}"] = Rate(holds[:, :depth].any(1).sum() / num_questions, num_questions)
    return LossOutput(found.loss, metrics)


def joint_topk(token_log_likelihoods: Tensor, num_questions: float) -> LossOutput:
    """Joint Top-k: the reader attends to all passages jointly, with their priors as a bias of its attention.

        loss = -1/B * sum_i sum_l log p(a_il | a_i1 .. a_i(l-1), q_i, z_1 .. z_K)

    (Sachan et al., arXiv 2101.00408, eq. 7 and 8; without the bias, FiD, arXiv 2007.01282.) The retriever's gradient
    flows through the bias.

    Args:
        token_log_likelihoods: [M], of all answers' tokens.

    Returns:
        See the module; of the metrics only `log_likelihood`.
    """
    loss = -_wide(token_log_likelihoods).sum() / num_questions
    return LossOutput(loss, {"log_likelihood": Mean(-loss.detach(), num_questions)})


def emdr2(
    scores: Tensor,
    is_real: Tensor,
    log_likelihoods: Tensor,
    token_log_likelihoods: Tensor,
    num_questions: float,
) -> LossOutput:
    """EMDR2: the reader is trained on all passages jointly, the retriever on the likelihood of the answer from each.

        loss = -1/B * sum_i [ log p(a_i | q_i, z_1 .. z_K)  +  log sum_z sg(p(a_i | q_i, z)) p(z | q_i) ]

    sg: no gradient. (Sachan et al., arXiv 2106.05346, section 2.3.)

    Args:
        log_likelihoods: [n, K] as in `individual_topk`; they get no gradient.
        token_log_likelihoods: [M] as in `joint_topk`.

    Returns:
        See the module; `log_likelihood` is the first part, `marginal_log_likelihood` the second.
    """
    reader = joint_topk(token_log_likelihoods, num_questions)
    retriever = individual_topk(scores, is_real, log_likelihoods.detach(), num_questions)
    marginal = {"marginal_log_likelihood": retriever.metrics["log_likelihood"]}
    return LossOutput(reader.loss + retriever.loss, {**retriever.metrics, **marginal, **reader.metrics})


def distillation(
    scores: Tensor, is_real: Tensor, log_likelihoods: Tensor, num_questions: float, temperature: float = 1.0
) -> LossOutput:
    """Perplexity distillation: the prior is trained towards the reader's distribution over passages; the reader is not.

        loss = 1/B * sum_i sum_z r(z) log( r(z) / p(z | q_i) ),   r = softmax over z of sg(log p(a_i | q_i, z)) / t

    sg: no gradient. (Atlas, arXiv 2208.03299, section 2.2, where t is 1.)

    Args:
        log_likelihoods: [n, K] as in `individual_topk`; they get no gradient.
        temperature: t; above 1 passages share the target more evenly.

    Returns:
        See the module; `log_likelihood` is that of `individual_topk`.
    """
    held_fixed = log_likelihoods.detach()
    marginal = individual_topk(scores.detach(), is_real, held_fixed, num_questions)
    is_possible = is_real & (held_fixed != -torch.inf)
    reader = log_priors(held_fixed / temperature, is_possible)
    share = reader.exp()
    # passages of likelihood 0 do not constrain the prior: 0 * log(0 / p) = 0
    distance = reader.masked_fill(~is_possible, 0) - log_priors(scores, is_real).masked_fill(~is_possible, 0)
    return LossOutput((share * distance).sum() / num_questions, marginal.metrics)


def log_priors(scores: Tensor, is_real: Tensor) -> Tensor:
    """log p(z | q): [n, K] and [n, K] -> [n, K], float32 at least; -inf, without a gradient, for fillers."""
    scores = _wide(scores)
    # the lowest finite number: with -inf the gradient of a question without passages would be NaN
    candidates = scores.masked_fill(~is_real, torch.finfo(scores.dtype).min)
    return candidates.log_softmax(1).masked_fill(~is_real, -torch.inf)


def prior_entropy(log_priors: Tensor, num_questions: float) -> Mean:
    """The mean entropy of p(z | q), in nats, given `log_priors` [n, K]."""
    return Mean(torch.special.entr(log_priors.detach().exp()).sum() / num_questions, num_questions)


def posteriors(log_priors: Tensor, log_likelihoods: Tensor) -> Tensor:
    """[n, K] p(z | q, a) from log p(z | q), -inf for fillers, and log p(a | q, z); 0 everywhere where every passage has
    0."""
    joint = (log_priors + log_likelihoods).masked_fill(log_priors == -torch.inf, -torch.inf)
    return (joint - joint.logsumexp(1, keepdim=True)).exp().nan_to_num(0.0)


def posterior_divergence(log_priors: Tensor, log_likelihoods: Tensor) -> Tensor:
    """[n] KL(p(z | q, a) || p(z | q)), in nats: how far the answer moves the weights of passages.

    With m the sum over passages it is sum_z p(z | q, a) log p(a | q, z) - log m; 0 where m is 0.

    Args:
        log_priors: [n, K], -inf for fillers.
        log_likelihoods: [n, K] log p(a | q, z).
    """
    priors = log_priors.detach()
    likelihoods = _wide(log_likelihoods.detach()).masked_fill(priors == -torch.inf, -torch.inf)
    # the greatest as 0: else small differences of large numbers would be rounded away
    likelihoods = likelihoods - likelihoods.amax(1, keepdim=True).nan_to_num(0.0, neginf=0.0)
    marginal, posterior = (priors + likelihoods).logsumexp(1), posteriors(priors, likelihoods)
    divergence = torch.where(posterior > 0, posterior * likelihoods, 0.0).sum(1) - marginal
    return divergence.where(marginal > -torch.inf, 0.0)


def sum_over_passages(joint: Tensor, is_real: Tensor) -> Tensor:
    """log sum_z p(a, z | q): [n, K, ...] -> [n, ...]; -inf, without a gradient, where every real passage has 0."""
    joint = joint.masked_fill(~is_real, -torch.inf)
    is_hopeless = (joint == -torch.inf).all(1)
    return joint.masked_fill(is_hopeless[:, None], 0).logsumexp(1).masked_fill(is_hopeless, -torch.inf)


def _output(
    log_likelihoods: Tensor, log_priors: Tensor, each: Tensor, num_questions: float, smoothed: Tensor | None = None
) -> LossOutput:
    """Loss and metrics from the answers' log-likelihoods [n], -inf where a question adds nothing, and those with each
    passage [n, K]; the loss is of the smoothed ones, where there are such."""
    is_unread = log_likelihoods == -torch.inf
    is_asked = (log_priors > -torch.inf).any(1)
    read = log_likelihoods.masked_fill(is_unread, 0).sum() / num_questions
    loss = -read if smoothed is None else -smoothed.masked_fill(is_unread, 0).sum() / num_questions
    metrics: dict[str, Metric] = {
        "log_likelihood": Mean(read.detach(), num_questions),
        "prior_entropy": prior_entropy(log_priors, num_questions),
        "posterior_divergence": Mean(posterior_divergence(log_priors, each).sum() / num_questions, num_questions),
        "num_unread_questions": Count((is_unread & is_asked).sum()),
    }
    return LossOutput(loss, metrics)


def _wide(values: Tensor) -> Tensor:
    """In float32, or in a wider type that it already has."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
