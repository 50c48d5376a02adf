"""Greedy search, beam search and sampling over any generator; all tensor-parallel ranks get the same answers.

What a generator gives: `Sources`, the prompts or encoded texts that sequences are decoded from, and from them a
`GenerationState`, which extends the open sequences by one token and reorders them. An encoder-decoder is
`models.encoded_sources.EncodedSources`; `models.mixture.MixedSources` makes one source of several (RAG-Token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.config.checks import Bounds, NonNegativeFloat, PositiveInt
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.beams import Beams, BestTokens, Generated
from megatron_retrieval.models.next_tokens import best_tokens, sampled_tokens
from megatron_retrieval.models.passage_scores import MarginalDecodingConfig
from megatron_retrieval.utils.seeds import generator


class GenerationState(Protocol):
    """The sequences that a search extends, with what is cached of them.

    Every open source has as many sequences as the others (its beams; at first one), in consecutive rows: R = S * n.
    """

    def step(self, newest: Tensor | None) -> Tensor:
        """Add one token to every sequence, and predict the next.

        Args:
            newest: [R, 1] int64; None at the first step, which adds what the generator starts with (a start token, or
                nothing behind a prompt).

        Returns:
            [R, V / tensor-parallel size] float32 logits, this rank's part of the vocabulary, the caller's own; the
            lowest number at entries without a token.
        """
        ...

    def select(self, rows: Tensor | None, sources: Tensor | None) -> None:
        """Keep the sequences that the search continues, in their new order.

        Args:
            rows: [R'] int64, the row before that each row continues, possibly several times; all of those of a source
                stay with it. Their number for each source may change. None: all, in their order, and no source is done.
            sources: [S'] int64, ascending, indices among the open sources of those that stay open; None: all.
        """
        ...


class Sources(Protocol):
    """What a generator has read: S sources to decode from, encoded once, as often as wanted.

    Attributes:
        num_sources: S.
        end_id: last token of every answer.
        device: of its tensors.
    """

    @property
    def num_sources(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def start(self) -> GenerationState:
        """A new state with one empty sequence for each source."""
        ...

    def token_log_likelihoods(self, labels: Tensor) -> Tensor:
        """log p(a_l | a_1 .. a_(l-1), source) of n given answers to every source, without gradient.

        Args:
            labels: [S, n, L] int64 on `device`, with their end tokens, -1 behind them.

        Returns:
            [S, n, L] float32, equal on all tensor-parallel ranks; 0 behind the answers.
        """
        ...


@dataclass(kw_only=True, frozen=True)
class BeamSearchConfig(MarginalDecodingConfig):
    """Greedy search, beam search or sampling."""

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
    sampling_temperature: NonNegativeFloat = 0.0
    """Draw every token from the softmax of logits / temperature; 0: search for the likeliest answer instead. The same
    question gets the same draws whatever stands beside it."""
    sampling_top_p: Annotated[float, Bounds(above=0, most=1)] = 1.0
    """Draw only from the likeliest tokens that together hold this share of the probability."""
    sampling_seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling_temperature > 0 and self.num_beams > 1:
            raise ConfigError(
                f"--sampling-temperature {self.sampling_temperature:g} draws one answer: leave out --num-beams "
                f"{self.num_beams}, or the temperature."
            )


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
def generate(
    sources: Sources, config: GenerationConfig, tp_group: dist.ProcessGroup, names: Sequence[str] = ()
) -> Generated:
    """Generate the `num_beams` best answers to each source.

    Sources that are done leave the batch with their caches. An answer does not depend on the other sources of the
    batch.

    Args:
        sources: of a model in evaluation mode.
        tp_group: the ranks that share the vocabulary; all of them call this together and get equal answers.
        names: of the sources; each names the draws of its sampling. Needed by sampling alone.
    """
    beams = Beams(
        sources.num_sources,
        num_beams=config.num_beams,
        max_length=config.max_answer_length,
        length_penalty=config.length_penalty,
        # greedy search ends with the first end token
        stop_at_first=config.stop_at_first_answers or config.num_beams == 1,
        end_id=sources.end_id,
        device=sources.device,
    )
    draws = _draws(config, names, sources.device) if config.sampling_temperature > 0 else None
    state, newest = sources.start(), None
    while beams.num_open:
        logits = state.step(newest)
        forbidden = sources.end_id if beams.num_tokens < config.min_answer_length else None
        survivors = beams.advance(_candidates(logits, beams, config, tp_group, forbidden, draws))
        if survivors.sources is None or len(survivors.sources):
            state.select(survivors.rows, survivors.sources)
        newest = survivors.tokens
    return beams.result()


def _candidates(
    logits: Tensor,
    beams: Beams,
    config: GenerationConfig,
    tp_group: dist.ProcessGroup,
    forbidden: int | None,
    draws: Tensor | None,
) -> BestTokens:
    """What every row may continue with."""
    if draws is None:
        # twice as many as beams, since half of them may be end tokens
        return best_tokens(logits, 2 * config.num_beams, tp_group, forbidden)
    return sampled_tokens(
        logits,
        draws[beams.open_questions, beams.num_tokens],
        tp_group,
        temperature=config.sampling_temperature,
        top_p=config.sampling_top_p,
        forbidden=forbidden,
    )


def _draws(config: GenerationConfig, names: Sequence[str], device: torch.device) -> Tensor:
    """[S, max_answer_length] float64, one draw from [0, 1) for every token that a source may get."""
    streams = [generator(config.sampling_seed, "answer", name).random(config.max_answer_length) for name in names]
    return torch.from_numpy(np.stack(streams)).to(device)
