"""Greedy and beam search; all tensor-parallel ranks get the same answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.errors import ConfigError, DivergenceError
from megatron_retrieval.models.beams import Beams, BestTokens, Generated
from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.memory import Memory
from megatron_retrieval.models.multi_head_attention import CrossAttention
from megatron_retrieval.models.seq2seq import EncoderDecoder
from megatron_retrieval.parallel.collectives import gather_rows


@dataclass(kw_only=True, frozen=True)
class BeamSearchConfig(Checked):
    """Greedy or beam search."""

    num_beams: PositiveInt = 1
    """Beams per question; 1: greedy search."""
    min_answer_length: int = 0
    """Shortest answer in tokens, without the end token."""
    length_penalty: float = 1.0
    """Beam search ranks answers by log-likelihood / length ** penalty: above 0 favours longer answers, below 0 shorter
    ones."""
    stop_at_first_answers: bool = False
    """Beam search of a question ends as soon as it has as many finished answers as beams; off: only when in addition no
    open beam scores higher."""


@dataclass(kw_only=True, frozen=True)
class GenerationConfig(BeamSearchConfig):
    """Search and length of generated answers; recorded in every result."""

    max_answer_length: int = 32
    """Longest answer in tokens, with the end token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_answer_length < self.max_answer_length:
            raise ConfigError(
                f"--min-answer-length {self.min_answer_length} must be at least 0 and below --max-answer-length "
                f"{self.max_answer_length}, which counts the end token."
            )


@torch.no_grad()
def generate(model: EncoderDecoder, memory: Memory, config: GenerationConfig, tp_group: dist.ProcessGroup) -> Generated:
    """Generate an answer for each source.

    Questions that are done leave the batch with their caches. An answer does not depend on the other questions of the
    batch.

    Args:
        model: in evaluation mode.
        memory: the sources, see `EncodedMemory`.
        tp_group: the ranks that share the vocabulary; all of them call this together and get equal answers.
    """
    beams = Beams(
        memory.num_sources,
        num_beams=config.num_beams,
        max_length=config.max_answer_length,
        length_penalty=config.length_penalty,
        # greedy search ends with the first end token
        stop_at_first=config.stop_at_first_answers or config.num_beams == 1,
        end_id=model.end_id,
        device=memory.device,
    )
    ids = torch.full((memory.num_sources, 1), model.start_id, device=memory.device)
    memory = memory.precompute(part for part in model.decoder.modules() if isinstance(part, CrossAttention))
    cache = TokenCache()
    while len(ids):
        logits = model.logits(model.decoder(ids, memory, cache)[:, -1])
        forbidden = model.end_id if beams.num_tokens < config.min_answer_length else None
        # twice as many as beams, since half of them may be end tokens
        survivors = beams.advance(best_tokens(logits, 2 * config.num_beams, tp_group, forbidden))
        memory = memory.select(survivors.rows, survivors.sources)
        cache.select(survivors.rows)
        ids = survivors.tokens
    return beams.result()


def best_tokens(logits: Tensor, k: int, tp_group: dist.ProcessGroup, forbidden: int | None = None) -> BestTokens:
    """The k likeliest next tokens of every row, without gathering the vocabulary.

    Args:
        logits: [R, V / tensor-parallel size] float32, this rank's part; overwritten.
        forbidden: a token that is not chosen; the likelihoods of the others are unchanged.

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
    log_likelihoods = values.gather(1, order) - normalisers.logsumexp(0)
    return BestTokens(ids.gather(1, order).long(), log_likelihoods.float())


def _greatest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest values of each row in descending order, with their columns; ties go to the lower column.

    Raises:
        DivergenceError: a value is not a number.
    """
    border = values.topk(k).values[:, -1:]
    is_chosen = values >= border
    if bool((is_chosen.sum(1) != k).any()):
        if bool(values.isnan().any()):
            raise DivergenceError(
                "the logits of the next token are not finite: the reader's weights are not, or values leave the range "
                "of --fp16; give --bf16 or neither, or try another checkpoint."
            )
        # more than k values reach the border: of those equal to it, the lowest columns are chosen
        is_greater, is_equal = values > border, values == border
        is_chosen = is_greater | is_equal & (is_equal.cumsum(1) <= k - is_greater.sum(1, keepdim=True))
    columns = is_chosen.nonzero()[:, 1].view(-1, k)
    greatest, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return greatest, columns.gather(1, order)
