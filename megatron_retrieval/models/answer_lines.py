"""Answers of one line: whatever a reader would write behind a line break counts as the answer's end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.parallel.collectives import gather_rows
from megatron_retrieval.tokenizers.vocabulary import LineTokens

#: taken off the logits of what follows the end of a line inside of a token; only where no end is allowed yet (an answer
#: below its shortest length) is such a token written
_IMPOSSIBLE = 1e4


@dataclass(frozen=True)
class AnswerLines:
    """Which tokens end an answer, beside its end token, on one tensor-parallel rank.

    Once an answer has text, a token that begins with a line break (white space aside) ends it: such tokens and the end
    token are one event, whose probability is the sum of theirs and is counted as that of the end token. A token with
    text before its line break is written, and then the end is certain. Line breaks before the text are written as any
    token is. So answers that agree up to the line break are one, as likely as all of its continuations.

    Attributes:
        is_text: [V] bool, tokens of more than white space.
        closes_line: [V] bool, tokens with text before a line break.
        columns: [m] int64, tokens of this rank's part of the vocabulary that begin with a line break.
        end: [1] int64, the end token's column in it; [0] where another rank has it.
        tp_group: the ranks that share the vocabulary.
    """

    is_text: Tensor
    closes_line: Tensor
    columns: Tensor
    end: Tensor
    tp_group: dist.ProcessGroup

    @classmethod
    def of(cls, tokens: LineTokens, end_id: int, width: int, tp_group: dist.ProcessGroup, device: torch.device) -> Self:
        """Those of a vocabulary.

        Args:
            width: of this rank's part of the model's (padded) vocabulary.
        """
        size = width * tp_group.size()
        is_text, starts_line, closes_line = (
            torch.nn.functional.pad(torch.from_numpy(table), (0, size - len(table))) for table in tokens
        )
        mine = slice(tp_group.rank() * width, (tp_group.rank() + 1) * width)
        is_end = torch.arange(size)[mine] == end_id
        columns = starts_line[mine].nonzero()[:, 0]
        return cls(
            is_text.to(device), closes_line.to(device), columns.to(device), is_end.nonzero()[:, 0].to(device), tp_group
        )


class LineState:
    """What R answers have written, as far as their end depends on it."""

    def __init__(self, lines: AnswerLines, num_rows: int) -> None:
        self._lines = lines
        self._has_text = torch.zeros(num_rows, dtype=torch.bool, device=lines.is_text.device)
        self._is_closed = torch.zeros_like(self._has_text)

    def write(self, newest: Tensor) -> None:
        """Take the newest tokens, [R]."""
        self._has_text = self._has_text | self._lines.is_text[newest]
        self._is_closed = self._is_closed | self._lines.closes_line[newest]

    def select(self, rows: Tensor) -> None:
        """See `generation.GenerationState`."""
        self._has_text, self._is_closed = self._has_text[rows], self._is_closed[rows]

    def fold(self, logits: Tensor) -> Tensor:
        """Give the end token the probability of all that ends an answer here.

        Args:
            logits: [R, V / tensor-parallel size], this rank's part; overwritten.
        """
        lines, begun = self._lines, self._has_text[:, None]
        breaks = logits[:, lines.columns]
        ending = torch.cat([logits[:, lines.end], breaks.masked_fill(~begun, -torch.inf)], 1).logsumexp(1)
        if bool(self._is_closed.any()):
            ending = torch.where(self._is_closed, logits.logsumexp(1), ending)
            logits -= _IMPOSSIBLE * self._is_closed[:, None]
        logits[:, lines.columns] = breaks.masked_fill(begun, torch.finfo(logits.dtype).min)
        parts = gather_rows(ending, lines.tp_group).view(lines.tp_group.size(), -1)
        logits[:, lines.end] = parts.logsumexp(0)[:, None]
        return logits
