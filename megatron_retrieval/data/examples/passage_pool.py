"""Passages of a training file, each kept and tokenized once however many questions name it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_passages
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Rows, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.answer_text import normalized

#: in a slot that holds no passage
NO_PASSAGE = -1
_CACHED_TEXTS = 1 << 17


class PassageCollector:
    """Numbers passages by (title, text)."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def add(self, passages: Sequence[Passage]) -> tuple[int, ...]:
        """The numbers of the passages, each once, in order."""
        return tuple(dict.fromkeys(self.numbers(passages)))

    def numbers(self, passages: Sequence[Passage]) -> list[int]:
        """The number of each passage."""
        numbers = self._numbers
        return [numbers.setdefault((passage.title, passage.text), len(numbers)) for passage in passages]

    def passages(self) -> list[Passage]:
        """By their numbers, without ids."""
        return [Passage("", title, text) for title, text in self._numbers]

    def pool(
        self, tokenizer: Vocabulary, text_format: TextFormatConfig, evidence: EvidenceStore | None = None
    ) -> PassagePool:
        titles, texts = zip(*self._numbers, strict=True)
        return PassagePool(titles, texts, tokenizer, text_format, evidence)


class PassagePool:
    """Numbered passages with their token ids and, on demand, their text normalised for answer matching.

    Args:
        evidence: whose passages have the numbers that follow, see `numbers_of_rows`.
    """

    def __init__(
        self,
        titles: Sequence[str],
        texts: Sequence[str],
        tokenizer: Vocabulary,
        text_format: TextFormatConfig,
        evidence: EvidenceStore | None = None,
    ) -> None:
        self._evidence = evidence
        self._numbers = dict(zip(zip(titles, texts, strict=True), range(len(texts)), strict=True)) if evidence else {}
        self._titles, self._texts, self._format, self._tokenizer = titles, texts, text_format, tokenizer
        # one empty passage at the end stands for `NO_PASSAGE`
        self._title_tokens, self._text_tokens = (tokenize(tokenizer, [*field, ""]) for field in (titles, texts))
        #: the text of a passage, normalised for answer matching
        self.normalized_text = lru_cache(_CACHED_TEXTS)(self._normalized_text)

    def __len__(self) -> int:
        return len(self._texts)

    def numbers_of_rows(self, rows: Rows, without: Sequence[int]) -> tuple[int, ...]:
        """The numbers of passages of the evidence, those of the files where the same stand there.

        Args:
            without: numbers of passages, whose texts are left out.
        """
        assert self._evidence is not None
        left_out = {self._texts[number] for number in without}
        found = zip(rows.tolist(), self._evidence.passages(rows), strict=True)
        return tuple(
            self._numbers.get((passage.title, passage.text), len(self) + row)
            for row, passage in found
            if passage.text not in left_out
        )

    def title(self, number: int) -> str:
        return self._titles[number]

    def tokens(self, numbers: Rows) -> TokenBatch:
        """The passages laid out for the encoder; an empty sequence for `NO_PASSAGE`."""
        if self._evidence is None or not (is_found := numbers >= len(self)).any():
            return self._own_tokens(numbers)
        own = self._own_tokens(np.where(is_found, NO_PASSAGE, numbers))
        found = self._evidence.tokens(numbers[is_found] - len(self), self._format)
        return own.with_rows(torch.from_numpy(np.flatnonzero(is_found)), found)

    def _own_tokens(self, numbers: Rows) -> TokenBatch:
        is_filler = numbers == NO_PASSAGE
        rows = np.where(is_filler, len(self), numbers)
        titles, texts = (column.take(rows) for column in (self._title_tokens, self._text_tokens))
        batch = lay_out_passages(titles, texts, self._tokenizer, self._format)
        batch.lengths.numpy()[is_filler] = len(self._tokenizer.special.frame)
        return batch

    def _normalized_text(self, number: int) -> str:
        if number < len(self):
            return normalized(self._texts[number])
        assert self._evidence is not None
        return normalized(self._evidence.passage(number - len(self)).text)


class AnswerIndex:
    """Finds which of a few hundred passages contain an answer, without trying every pair.

    Args:
        passages: normalised texts.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self._passages = passages
        self._places: dict[str, list[int]] = {}
        for place, passage in enumerate(passages):
            for token in set(passage.split()):
                self._places.setdefault(token, []).append(place)

    def containing(self, answer: str) -> list[int]:
        """Places of the passages that contain the normalised `answer`: tried only where its rarest token stands."""
        candidates = min((self._places.get(token, []) for token in answer.split()), key=len, default=[])
        return [place for place in candidates if answer in self._passages[place]]
