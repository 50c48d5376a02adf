"""What a model needs of its vocabulary, of whatever kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids of the tokens that frame a sequence.

    Attributes:
        begin: what a sequence begins with; None: nothing.
        end: what a sequence ends with, and what stands between two texts in one sequence.
        num_between: how many of them stand there (RoBERTa: two).
        pad: fills the rows of a batch behind their ends.
        mask: hides a token that a masked language model is to predict; None: the vocabulary has no such token.
        unknown: stands for characters that the vocabulary cannot write; None: it writes all.
    """

    begin: int | None
    end: int
    pad: int
    mask: int | None = None
    unknown: int | None = None
    num_between: int = 1

    @property
    def frame(self) -> list[int]:
        """A sequence without text."""
        return [self.end] if self.begin is None else [self.begin, self.end]


class LineTokens(NamedTuple):
    """What tokens do to a line of text; [vocab_size] each.

    Attributes:
        is_text: of more than white space; special tokens are no text.
        starts_line: a line break, with nothing but white space before it.
        closes_line: text, and a line break behind it.
    """

    is_text: NDArray[np.bool_]
    starts_line: NDArray[np.bool_]
    closes_line: NDArray[np.bool_]


class Vocabulary(Protocol):
    """Text to token ids and back. Words that look like special tokens are text: no text can forge a frame.

    Attributes:
        kind: name of its row in `VOCABULARIES`.
        path: file that it was read from.
        vocab_size: all ids are below it.
        fingerprint: equal fingerprints give equal ids.
        is_reversible: `decode` gives texts back as they were written; False: in lower case, or with other spaces.
        is_separable: the ids of texts one after another are those of the texts joined by spaces; False: a text has
            other ids behind a space, or behind a prefix, than `encode` gives it at the beginning of a sequence.
        sentinel_ids: ids that stand for gaps in a text, in the order in which a text uses them; empty: none.
    """

    @property
    def kind(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def is_reversible(self) -> bool: ...
    @property
    def is_separable(self) -> bool: ...
    @property
    def special(self) -> SpecialIds: ...
    @property
    def sentinel_ids(self) -> Sequence[int]: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of every text, without special tokens."""
        ...

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of every sequence, of the ids that `until_end` keeps."""
        ...

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """The ids before the first end token that stand for text."""
        ...

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For every token of `text`, the (start, stop) of the characters that it stands for."""
        ...

    def continues_word(self) -> NDArray[np.bool_]:
        """[vocab_size] which tokens continue the word of the token before them."""
        ...

    def closes_word(self) -> NDArray[np.bool_]:
        """[vocab_size] behind which tokens none continues a word, whatever `continues_word` says of it (punctuation,
        where the vocabulary marks the spaces before words)."""
        ...

    def assets(self) -> dict[str, bytes]:
        """Contents of the files that it can be opened from again, by name; checkpoints and token folders keep them."""
        ...

    def settings(self) -> dict[str, Any]:
        """What else opening needs, as JSON values; manifests keep it."""
        ...
