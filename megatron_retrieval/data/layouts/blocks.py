"""Blocks: consecutive sentences of one document, as many as a sequence holds; the texts of unsupervised pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.config.checks import Bounds, Checked
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.layouts.sequences import PassageFormat, at_the_beginning, format_passages
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import SpecialIds, Vocabulary
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.seeds import fractions

#: a title takes at most this share of a sequence, so that text remains
_TITLE_SHARE = 4
SHORTEST_SEQUENCE = 8


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Checked):
    """The text that is trained on, cut into blocks of consecutive sentences."""

    data_path: str = field(metadata=INPUT)
    """Corpus folder (build corpus)."""
    use_titles: bool = True
    """Put the document's title in front of each of its blocks."""
    valid_fraction: Annotated[float, Bounds(least=0, below=1)] = 0.005
    """Share of the documents held out for evaluation during training, chosen by --seed; 0: none."""


class SentenceCorpus(Protocol):
    """A corpus as blocks need it; no sentence is empty and no document is without a sentence.

    Attributes:
        vocabulary: of its token ids.
        special: ids that frame a sequence.
        sentences: token ids of the sentences of all documents, one document after another.
        titles: token ids of the title of each document, perhaps none.
        documents: [n + 1] document d holds the sentences `documents[d]` to `documents[d + 1]`.
    """

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def special(self) -> SpecialIds: ...
    @property
    def sentences(self) -> Ragged: ...
    @property
    def titles(self) -> Ragged: ...
    @property
    def documents(self) -> Rows: ...


@dataclass(frozen=True)
class Blocks:
    """Blocks in the order of the corpus.

    Attributes:
        first: [n] number of the first sentence.
        end: [n] one past the last sentence.
        document: [n] the document that they are part of.
    """

    first: Rows
    end: Rows
    document: Rows

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: Rows | NDArray[np.bool_]) -> Blocks:
        """The blocks `rows` (numbers or a mask)."""
        return Blocks(self.first[rows], self.end[rows], self.document[rows])

    def texts(self, corpus: SentenceCorpus) -> Ragged:
        """The tokens of the blocks."""
        return corpus.sentences.join(self.first, self.end)


@dataclass(frozen=True, kw_only=True)
class BlockRoom:
    """How much text a sequence holds, beside a title that leaves room for it.

    Attributes:
        use_titles: put the document's title in front; off: as passages without title.
        seq_length: longest sequence, in tokens with title and special tokens.
    """

    use_titles: bool
    seq_length: int

    def __post_init__(self) -> None:
        if self.seq_length < SHORTEST_SEQUENCE:
            raise ConfigError(f"sequences of {self.seq_length} tokens are too short, {SHORTEST_SEQUENCE} is the least.")

    @property
    def num_special(self) -> int:
        """Special tokens of a sequence."""
        return 0

    @property
    def longest_title(self) -> int:
        """In tokens; longer ones are cut."""
        return self.seq_length // _TITLE_SHARE if self.use_titles else 0

    def capacity(self, corpus: SentenceCorpus, documents: Rows) -> Rows:
        """[n] tokens of text that a block of each document holds."""
        lengths = corpus.titles.offsets[documents + 1] - corpus.titles.offsets[documents]
        capacity: Rows = self.seq_length - self.num_special - np.minimum(lengths, self.longest_title)
        return capacity


@dataclass(frozen=True, kw_only=True)
class BlockLayout(BlockRoom):
    """How a block becomes a sequence: the layout of passages, with a title that leaves room for text."""

    passage_format: PassageFormat
    prefix: tuple[int, ...] = ()
    num_between: int = 1

    @property
    def num_special(self) -> int:
        """Special tokens of a sequence, and those of the prefix."""
        between = self.num_between if self.passage_format == "title-sep-text" else 0
        return 2 + between + len(self.prefix)

    def tokens(self, corpus: SentenceCorpus, documents: Rows, texts: Ragged) -> TokenBatch:
        """The sequences of `texts`, which come from `documents`; long ones are cut.

        Args:
            texts: their ids behind a space.
        """
        titles = corpus.titles.take(documents, self.longest_title)
        if self.passage_format == "title-sep-text" or not self.use_titles:
            texts = at_the_beginning(texts, corpus.vocabulary)
        return format_passages(
            titles,
            texts,
            corpus.special,
            seq_length=self.seq_length,
            passage_format=self.passage_format,
            prefix=self.prefix,
        )


def make_blocks(corpus: SentenceCorpus, documents: Rows, room: BlockRoom) -> Blocks:
    """Pack the sentences of each of `documents` (ascending) greedily into blocks.

    A sentence longer than a sequence is a block of its own, which is cut when it is laid out. All documents are
    packed at once, their k-th blocks in the k-th round.
    """
    offsets = corpus.sentences.offsets
    documents = np.asarray(documents, np.int64)
    starts, stops = corpus.documents[documents], corpus.documents[documents + 1]
    capacity = room.capacity(corpus, documents)
    rounds = []
    while len(starts):
        ends = np.searchsorted(offsets, offsets[starts] + capacity, side="right") - 1
        ends = np.clip(ends, starts + 1, stops)
        rounds.append((starts, ends, documents))
        left = ends < stops
        starts, stops, capacity, documents = ends[left], stops[left], capacity[left], documents[left]
    if not rounds:
        return Blocks(*(np.empty(0, np.int64) for _ in range(3)))
    first, end, document = (np.concatenate(column) for column in zip(*rounds, strict=True))
    return Blocks(first, end, document)[np.argsort(first)]


def split_documents(num_documents: int, valid_fraction: float, seed: int) -> tuple[Rows, Rows]:
    """The documents to train on and those held out.

    Which they are depends on the seed and the document's number alone, so that every job with this seed holds out the
    same ones.
    """
    held_out = fractions(np.arange(num_documents), seed, "held-out-documents") < valid_fraction
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
