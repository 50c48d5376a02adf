"""The choice of next tokens from logits that are sharded over the vocabulary; equal on all tensor-parallel ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.errors import DivergenceError
from megatron_retrieval.models.beams import BestTokens
from megatron_retrieval.parallel.collectives import gather_rows

#: logits of entries without a token, and of forbidden ones, are below, also when a mixture has moved them
LOWEST = torch.finfo(torch.float32).min / 2


def best_tokens(logits: Tensor, k: int, tp_group: dist.ProcessGroup, forbidden: int | None = None) -> BestTokens:
    """The k likeliest next tokens of every row, without gathering the vocabulary.

    Args:
        logits: [R, V / tensor-parallel size] float32, this rank's part; overwritten.
        forbidden: a token that is not chosen; the likelihoods of the others are unchanged.

    Returns:
        Likelihoods are -inf behind the tokens that there are.

    Raises:
        DivergenceError: a logit is not a number.
    """
    num_rows, width = logits.shape
    first = tp_group.rank() * width
    normaliser = logits.logsumexp(1, keepdim=True)
    if forbidden is not None and first <= forbidden < first + width:
        logits[:, forbidden - first] = torch.finfo(logits.dtype).min
    values, places = _greatest(logits, min(k, width))
    # float64 holds ids exactly, so that one collective is enough
    own = torch.cat([normaliser.double(), values.double(), (places + first).double()], 1)
    parts = gather_rows(own, tp_group).view(tp_group.size(), num_rows, -1)
    normalisers, values, ids = parts.split([1, values.size(1), values.size(1)], 2)
    # ranks hold ascending parts of the vocabulary: in rank order, equal values are ordered by id
    values, ids = (part.transpose(0, 1).flatten(1) for part in (values, ids))
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    values = values.gather(1, order)
    # where there are fewer tokens than k, the others are entries without a token, or forbidden
    log_likelihoods = (values - normalisers.logsumexp(0)).masked_fill(values <= LOWEST, -torch.inf)
    return BestTokens(ids.gather(1, order).long(), log_likelihoods.float())


def sampled_tokens(
    logits: Tensor,
    draws: Tensor,
    tp_group: dist.ProcessGroup,
    *,
    temperature: float,
    top_p: float,
    forbidden: int | None = None,
) -> BestTokens:
    """One token of every row, drawn from softmax(logits / temperature), cut to its nucleus: the fewest of the likeliest
    tokens that hold `top_p` of the probability (Holtzman et al. 2020, arXiv 1904.09751).

    Args:
        logits: as in `best_tokens`, likewise overwritten.
        draws: [R] float64 in [0, 1), equal on all ranks; each names the token at that share of the nucleus, whose
            tokens stand in descending order of probability.

    Returns:
        [R, 1], with log-likelihoods at temperature 1 and without a nucleus.

    Raises:
        DivergenceError: a logit is not a number.
    """
    whole = gather_rows(logits, tp_group).view(tp_group.size(), len(logits), -1).transpose(0, 1).flatten(1)
    if bool(whole.isnan().any()):
        raise _not_finite()
    log_likelihoods = whole.log_softmax(1)
    if forbidden is not None:
        whole[:, forbidden] = torch.finfo(whole.dtype).min
    shares, ids = (whole.double() / temperature).softmax(1).sort(dim=1, descending=True, stable=True)
    reached = shares.cumsum(1)
    # a token is in the nucleus if those before it do not hold enough
    num_kept = (reached - shares < top_p).sum(1, keepdim=True)
    nucleus = reached.gather(1, num_kept - 1)
    places = torch.searchsorted(reached, draws[:, None] * nucleus, right=True).minimum(num_kept - 1)
    chosen = ids.gather(1, places)
    return BestTokens(chosen, log_likelihoods.gather(1, chosen))


def _greatest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest values of each row in descending order, with their columns; ties go to the lower column.

    Raises:
        DivergenceError: a value is not a number.
    """
    border = values.topk(k).values[:, -1:]
    is_chosen = values >= border
    if bool((is_chosen.sum(1) != k).any()):
        if bool(values.isnan().any()):
            raise _not_finite()
        # more than k values reach the border: of those equal to it, the lowest columns are chosen
        is_greater, is_equal = values > border, values == border
        is_chosen = is_greater | is_equal & (is_equal.cumsum(1) <= k - is_greater.sum(1, keepdim=True))
    columns = is_chosen.nonzero()[:, 1].view(-1, k)
    greatest, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return greatest, columns.gather(1, order)


def _not_finite() -> DivergenceError:
    return DivergenceError(
        "the logits of the next token are not finite: the reader's weights are not, or values leave the range of "
        "--fp16; give --bf16 or neither, or try another checkpoint."
    )
