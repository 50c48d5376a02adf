"""Scores of a question's passages: by a cross-encoder or a reader, which read them together, or by late interaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.data.layouts.sequences import lay_out_passages, lay_out_questions
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.models.cross_encoder import CrossEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.late_interaction import LateInteraction, max_sim
from megatron_retrieval.parallel.precision import dtype_of
from megatron_retrieval.retrieval.encode_batches import parts_at_once
from megatron_retrieval.retrieval.late_encoder import LateEncoder
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.extractive import ExtractivePassages, SpanLogits
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.tokens import by_length, in_given_order

Model = TypeVar("Model", bound=nn.Module)
Layout = TypeVar("Layout")

#: half a gigabyte in float32: some 7,000 passages of 150 tokens with vectors of 128 numbers
KEPT_NUMBERS = 1 << 27


@dataclass(frozen=True)
class PairScorer(ABC, Generic[Model, Layout]):
    """A `PassageScorer` that reads the question and each passage in one sequence.

    Attributes:
        model: in evaluation mode.
        micro_batch_size: pairs in one forward pass.
    """

    model: Model
    layout: Layout
    vocabulary: Vocabulary
    device: torch.device
    micro_batch_size: int = 128

    @torch.no_grad()
    def __call__(self, question: str, passages: Sequence[Passage]) -> Tensor:
        """See PassageScorer."""
        pairs = self._lay_out(question, passages)
        batches = _batches(pairs.tokens.lengths, self.micro_batch_size, self.device, dtype_of(self.model))
        scores = torch.cat([self._scores(pairs.rows(batch).to(self.device)) for batch in batches])
        return in_given_order(scores.cpu(), batches)

    @abstractmethod
    def _lay_out(self, question: str, passages: Sequence[Passage]) -> ExtractivePassages:
        """The sequences of P pairs."""

    @abstractmethod
    def _scores(self, pairs: ExtractivePassages) -> Tensor:
        """[P] float32."""


class CrossEncoderScorer(PairScorer[CrossEncoder, PairFormatConfig]):
    """By a cross-encoder (Nogueira & Cho 2019, arXiv 1901.04085)."""

    def _lay_out(self, question: str, passages: Sequence[Passage]) -> ExtractivePassages:
        return self.layout.lay_out([question] * len(passages), passages, self.vocabulary)

    def _scores(self, pairs: ExtractivePassages) -> Tensor:
        scores: Tensor = self.model(pairs)
        return scores


class ExtractiveReaderScorer(PairScorer[ExtractiveReader, ExtractiveFormatConfig]):
    """By an extractive reader's scores of passages (Karpukhin et al. 2020, arXiv 2004.04906, equation 5)."""

    def _lay_out(self, question: str, passages: Sequence[Passage]) -> ExtractivePassages:
        columns = ([question] * len(passages), [each.title for each in passages], [each.text for each in passages])
        questions, titles, texts = (tokenize(self.vocabulary, column) for column in columns)
        return self.layout.lay_out(questions, titles, texts, self.vocabulary.special)

    def _scores(self, pairs: ExtractivePassages) -> Tensor:
        logits: SpanLogits = self.model(pairs)
        return logits.selection


class LateInteractionScorer:
    """A `PassageScorer`: each token of the question with its nearest of the passage (Khattab & Zaharia 2020, arXiv
    2004.12832, section 3.5). Vectors of passages are kept, so that the passages that many questions find are encoded
    once.

    Args:
        model: in evaluation mode.
        micro_batch_size: passages in one forward pass.
        kept_numbers: of all vectors that are kept; those used last.
    """

    def __init__(
        self,
        model: LateInteraction,
        layout: LateFormatConfig,
        vocabulary: Vocabulary,
        device: torch.device,
        micro_batch_size: int = 128,
        kept_numbers: int = KEPT_NUMBERS,
    ) -> None:
        self._encoder = LateEncoder(model, layout, vocabulary).eval()
        self._layout, self._vocabulary, self._device = layout, vocabulary, device
        self._micro_batch_size, self._kept_numbers = micro_batch_size, kept_numbers
        self._kept, self._num_kept = OrderedDict[Passage, Tensor](), 0

    @torch.no_grad()
    def __call__(self, question: str, passages: Sequence[Passage]) -> Tensor:
        """See PassageScorer."""
        asked = lay_out_questions(tokenize(self._vocabulary, [question]), self._vocabulary, self._layout)
        known = {passage: self._kept[passage] for passage in passages if passage in self._kept}
        known |= self._encoded([passage for passage in passages if passage not in known])
        vectors = pad_sequence([known[passage] for passage in passages], batch_first=True)
        scores = max_sim(self._encoder.question_vectors(asked.to(self._device)), vectors)[0]
        self._keep(known)
        return scores.cpu()

    def _encoded(self, passages: Sequence[Passage]) -> dict[Passage, Tensor]:
        """[tokens, C] of each, in their order."""
        if not passages:
            return {}
        titles = tokenize(self._vocabulary, [passage.title for passage in passages])
        texts = tokenize(self._vocabulary, [passage.text for passage in passages])
        found = lay_out_passages(titles, texts, self._vocabulary, self._layout)
        vectors: dict[Passage, Tensor] = {}
        for batch in _batches(found.lengths, self._micro_batch_size, self._device, dtype_of(self._encoder)):
            encoded = self._encoder.passage_vectors(found.rows(batch).to(self._device))
            for place, own in zip(batch.tolist(), encoded, strict=True):
                vectors[passages[place]] = own[: int(found.lengths[place])].clone()
        return vectors

    def _keep(self, vectors: Mapping[Passage, Tensor]) -> None:
        """Keep these, and forget those whose last use is longest ago where they are too many."""
        for passage, own in vectors.items():
            if passage not in self._kept:
                self._num_kept += own.numel()
            self._kept[passage] = own
            self._kept.move_to_end(passage)
        while self._num_kept > self._kept_numbers:
            self._num_kept -= self._kept.popitem(last=False)[1].numel()


def _batches(lengths: Tensor, micro_batch_size: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The numbers of sequences, those of like length together, in parts that fit the caches of a CPU."""
    batches = by_length(lengths, micro_batch_size, longest_first=True)
    return [part for batch in batches for part in parts_at_once(lengths[batch], batch, device, dtype)]
