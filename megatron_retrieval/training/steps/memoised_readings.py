"""What a frozen reader has once said of a passage is not asked again: without dropout it would say the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.training.steps.readings import Pass, ReaderSide
from megatron_retrieval.types.search import FILLER_ROW

#: a question with its answers, and a row of the evidence
Key = tuple[bytes, int]
#: values of a pass by question and row, on the CPU
Memo = dict[Key, Tensor]
#: values that a memo holds before it starts anew: about half a gigabyte of short answers
MOST_REMEMBERED = 1 << 20


class ReadingMemory:
    """What was read, from one run of a process to the next, such as those of a grid of learning rates: that of the
    newest reader only, so that it takes no more memory than a single run."""

    def __init__(self) -> None:
        self._reader: Hashable = None
        self._memos = _new_memos()

    def of(self, reader: Hashable) -> dict[str, Memo]:
        """The memos of a reader, by pass.

        Args:
            reader: everything that its readings depend on beside question, answers and row of the evidence, such as
                weights, layout and the evidence; alike on tensor-parallel neighbours, which read together.
        """
        if reader != self._reader:
            self._reader, self._memos = reader, _new_memos()
        return self._memos


def _new_memos() -> dict[str, Memo]:
    return {"each": {}, "each_token": {}}


class MemoisedReadings:
    """See ReaderSide; each passage for itself is read once for each question and answer.

    Args:
        side: of a reader that is not trained. Memory: up to `MOST_REMEMBERED` values and those of a batch, each about
            400 bytes and 4 for each token of the answer.

    Attributes:
        num_asked: passages that were asked for since the last `take_counts`; `num_read`: of these, how many were read.
        memos: what is remembered, by pass; others of the same reader may take their place, see `ReadingMemory`.
    """

    def __init__(self, side: ReaderSide) -> None:
        self.side = side
        self.num_asked = self.num_read = 0
        self.memos = _new_memos()

    @property
    def passes(self) -> frozenset[Pass]:
        """See ReaderSide."""
        return self.side.passes

    def reading(self, batch: AskedBatch, rows: Tensor) -> MemoisedReading:
        """See ReaderSide."""
        return MemoisedReading(self.side.reading(batch, rows), self, batch, rows)

    def take_counts(self) -> dict[str, int]:
        """`num_passages_asked` and `num_passages_read` of a rank since the last call."""
        counts = {"num_passages_asked": self.num_asked, "num_passages_read": self.num_read}
        self.num_asked = self.num_read = 0
        return counts

    def without_passages(self, batch: AskedBatch) -> Mapping[str, Tensor]:
        """See ReaderSide."""
        return self.side.without_passages(batch)


@dataclass(frozen=True)
class MemoisedReading:
    """See WritingReading; what it does not know is asked of `whole`."""

    whole: Any
    owner: MemoisedReadings
    batch: AskedBatch
    rows: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    @torch.no_grad()
    def each(self) -> Tensor:
        """See Reading."""
        found = self._remembered("each", lambda reading: reading.each()[..., None])
        return found[..., 0].masked_fill(~self.is_real, -torch.inf)

    @torch.no_grad()
    def each_token(self) -> Tensor:
        """See WritingReading."""
        return self._remembered("each_token", lambda reading: reading.each_token(), self.is_token.size(1))

    def _remembered(self, name: str, read: Callable[[Any], Tensor], width: int = 1) -> Tensor:
        """[n, K, width], zero where nothing is real and behind a value."""
        memo, is_real = self.owner.memos[name], self.is_real.cpu()
        keys = [[(own, row) for row in rows] for own, rows in zip(self._names(), self.rows.tolist(), strict=True)]
        keys = keys if self.rows.size(1) else [[(own, FILLER_ROW)] for own in self._names()]
        self._learn(memo, keys, is_real, read)
        values = torch.zeros(*is_real.shape, width)
        for question, place in is_real.nonzero().tolist():
            value = memo[keys[question][place]]
            values[question, place, : len(value)] = value[:width]
        return values.to(self.is_real.device)

    def _learn(self, memo: Memo, keys: list[list[Key]], is_real: Tensor, read: Callable[[Any], Tensor]) -> None:
        """Read what is real and not known yet; a full memo is emptied first."""
        if len(memo) >= MOST_REMEMBERED:
            memo.clear()
        self.owner.num_asked += int(is_real.sum())
        unknown: dict[int, list[Key]] = {}
        for question, place in is_real.nonzero().tolist():
            key = keys[question][place]
            if key not in memo and key not in unknown.get(question, ()):
                unknown.setdefault(question, []).append(key)
        if not unknown:
            return
        rows = torch.full((len(unknown), max(map(len, unknown.values()))), FILLER_ROW)
        for place, own in enumerate(unknown.values()):
            rows[place, : len(own)] = torch.tensor([row for _, row in own])
        self.owner.num_read += sum(map(len, unknown.values()))
        values = read(self.owner.side.reading(self.batch.questions(torch.tensor(list(unknown))), rows)).cpu()
        for place, own in enumerate(unknown.values()):
            memo.update(zip(own, values[place].clone(), strict=False))

    def _names(self) -> list[bytes]:
        """What names each question with its answers."""
        names = []
        for place, answers in enumerate(self.batch.answers):
            row = torch.tensor([place]).numpy()
            parts = (self.batch.reader_questions.take(row), self.batch.targets.take(row), answers)
            names.append(b"|".join(part.values.tobytes() + b"/" + part.offsets.tobytes() for part in parts))
        return names
