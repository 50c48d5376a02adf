"""How a question and a passage become one token sequence for cross-encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from megatron_retrieval.config.checks import Bounds, Checked
from megatron_retrieval.data.layouts.sequences import format_question_and_text
from megatron_retrieval.data.stores.ragged import Ragged, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.questions import Passage


@dataclass(kw_only=True, frozen=True)
class PairFormatConfig(Checked):
    """Layout of a question together with a passage: [CLS] question [SEP] title text [SEP]."""

    pair_seq_length: Annotated[int, Bounds(least=6, why="up to four special tokens and one of each text")] = 512
    """Longest question with its passage, in tokens with special tokens; the longer of the two is cut."""

    def lay_out(
        self, questions: Sequence[str], passages: Sequence[Passage], vocabulary: Vocabulary
    ) -> ExtractivePassages:
        """The sequences of P pairs; title and text are one text, joined by a space."""
        asked = tokenize(vocabulary, questions)
        read = tokenize(vocabulary, [f"{passage.title} {passage.text}".strip() for passage in passages])
        special = vocabulary.special
        room = self.pair_seq_length - len(special.frame) - special.num_between
        asked, read = _cut_the_longer(asked, read, room)
        return format_question_and_text(asked, read, special, self.pair_seq_length)


def _cut_the_longer(first: Ragged, second: Ragged, room: int) -> tuple[Ragged, Ragged]:
    """Each pair in `room` tokens: the shorter text has half of them if it needs them, the longer has the rest."""
    is_shorter = first.lengths <= second.lengths
    shorter = np.minimum(np.minimum(first.lengths, second.lengths), room // 2)
    rows, longer = np.arange(len(first)), room - shorter
    return (
        first.take(rows, np.where(is_shorter, shorter, longer)),
        second.take(rows, np.where(is_shorter, longer, shorter)),
    )
