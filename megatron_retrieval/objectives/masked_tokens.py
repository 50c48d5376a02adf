"""The loss of REALM: what is masked in a text, with the help of passages (Guu et al. 2020, arXiv 2002.08909)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from megatron_retrieval.objectives.end_to_end import log_priors, prior_entropy, sum_over_passages
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Mean, Metric

#: over what the likelihoods of passages are summed
MaskMarginal = Literal["token", "span"]


def masked_tokens(
    scores: Tensor,
    is_real: Tensor,
    is_null: Tensor | None,
    token_log_likelihoods: Tensor,
    is_token: Tensor,
    num_texts: float,
    num_tokens: Tensor | float,
    marginal: MaskMarginal = "token",
) -> LossOutput:
    """Masked tokens y_j of texts x, each predicted for itself.

        token:  loss = -1/M * sum_x sum_j log sum_z p(z | x) p(y_j | x, z)
        span:   loss = -1/B * sum_x log sum_z p(z | x) prod_j p(y_j | x, z)

    M: masked tokens of the batch; B: texts. The first is what REALM's code computes, the second what its section 3.2
    says.

    Args:
        scores: [n, K] s(x, z) / temperature.
        is_real: [n, K] bool, False for fillers.
        is_null: [n, K] bool, the null passage; None where it is no candidate.
        token_log_likelihoods: [n, K, L] log p(y_j | x, z).
        is_token: [n, L] bool, False at padding.
        num_texts: B.
        num_tokens: M.

    Returns:
        This rank's part: summed over ranks, means over the global batch. `log_likelihood`: of a masked token.
        `retrieval_utility`: how much likelier the passages make it than the null passage alone, in nats (appendix D);
        `utility_below_0`: share of the texts that they do not help.
    """
    priors = log_priors(scores, is_real)
    likelihoods = token_log_likelihoods.float().masked_fill(~is_token[:, None], 0)
    if marginal == "token":
        # a place without a token adds log sum_z p(z | x) = 0
        texts = (
            sum_over_passages(priors[:, :, None] + likelihoods, is_real[:, :, None]).masked_fill(~is_token, 0).sum(1)
        )
        loss = -texts.sum() / num_tokens
    else:
        texts = sum_over_passages(priors + likelihoods.sum(2), is_real)
        loss = -texts.sum() / num_texts
    metrics: dict[str, Metric] = {
        "log_likelihood": Mean(texts.detach().sum() / num_tokens, num_tokens),
        "prior_entropy": prior_entropy(priors, num_texts),
    }
    if is_null is not None:
        with torch.no_grad():
            utility = texts - likelihoods.sum(2).masked_fill(~is_null, 0).sum(1)
            metrics["retrieval_utility"] = Mean(utility.sum() / num_tokens, num_tokens)
            metrics["utility_below_0"] = Mean((utility < 0).sum() / num_texts, num_texts)
    return LossOutput(loss, metrics)
