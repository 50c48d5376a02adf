"""How a question and passages become what a RETRO reads: a chunk, and neighbours of it (Borgeaud et al. 2022, arXiv
2112.04426, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from megatron_retrieval.data.layouts.joint import JointLayout
from megatron_retrieval.data.layouts.lengths import ReaderLengthsConfig
from megatron_retrieval.data.stores.ragged import Ragged, Rows, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.neighbours import NeighbouredTexts, Neighbours


@dataclass(kw_only=True, frozen=True)
class RetroFormatConfig(ReaderLengthsConfig):
    """Layout of a question as a chunk, of which longer ones lose their beginning, and of passages as its neighbours."""

    reader_seq_length: int = 192
    """Longest passage, in tokens with title and what frames them; the text is cut."""


class RetroLayout(JointLayout):
    """The layout for one vocabulary; every text is encoded whole, as its tokens depend on what stands before them.

    A question stands in a chunk that it ends, as if it were padded on the left; the answer is in the next one.

    Args:
        chunk_length: m, in tokens.
    """

    answer_lead = " "

    def __init__(self, config: RetroFormatConfig, tokenizer: Vocabulary, chunk_length: int) -> None:
        special = tokenizer.special
        self.config, self.end_id, self.pad_id = config, special.end, special.pad
        self._tokenizer, self._chunk_length = tokenizer, chunk_length
        self._begin = [] if special.begin is None else [special.begin]

    def together(self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged]) -> NeighbouredTexts:
        """See JointLayout."""
        asked = self._decoded(self._cut(questions))
        whole = self._tokenizer.encode([f"question: {text} \nanswer:" for text in asked])
        rest = self._chunk_length - len(self._begin)
        prompts = Ragged.from_sequences([self._begin + ids[-rest:] for ids in whole], np.int64)
        lengths = prompts.lengths
        ids, _ = self._padded(prompts, lengths)
        starts = lengths - self._chunk_length
        return NeighbouredTexts(ids, torch.from_numpy(lengths), self._neighbours(passages, columns, starts))

    def longest(self, num_passages: int) -> int:
        """See JointLayout; passages stand beside the question, in the place of neighbours."""
        return self._chunk_length

    def _cut(self, questions: Ragged) -> Ragged:
        last = [questions[row][-self.config.question_seq_length :].tolist() for row in range(len(questions))]
        return Ragged.from_sequences(last, np.int64)

    def _neighbours(self, passages: Ragged, columns: tuple[Ragged, Ragged], starts: Rows) -> Neighbours:
        """Of the questions that have passages, whose chunks begin at `starts` [n]."""
        distinct, places = np.unique(passages.values.astype(np.int64), return_inverse=True)
        sources = self._sources(*(column.take(distinct) for column in columns)).take(places)
        numbers = passages.lengths
        asked = np.flatnonzero(numbers)
        is_passage = np.arange(int(numbers.max(initial=0))) < numbers[asked, None]
        lengths = np.zeros(is_passage.shape, np.int64)
        lengths[is_passage] = sources.lengths
        ids, own_lengths = self._padded(sources, lengths)
        return Neighbours(ids, own_lengths, torch.from_numpy(asked), torch.from_numpy(starts[asked]))

    def _sources(self, titles: Ragged, texts: Ragged) -> Ragged:
        """The ids of passages with their titles, which may be empty."""
        rows = zip(self._decoded(titles), self._decoded(texts), strict=True)
        read = [f"title: {title}, source: {text}" if title else f"source: {text}" for title, text in rows]
        whole = tokenize(self._tokenizer, read)
        return whole.take(np.arange(len(whole)), self.config.reader_seq_length)

    def _padded(self, sequences: Ragged, lengths: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequences of `lengths` [...], 0 for none, as [..., T] and their lengths."""
        is_token = np.arange(int(lengths.max(initial=0))) < lengths[..., None]
        ids = np.full(is_token.shape, self.pad_id, np.int64)
        ids[is_token] = sequences.values
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def _decoded(self, column: Ragged) -> list[str]:
        return self._tokenizer.decode([column[row].tolist() for row in range(len(column))])
