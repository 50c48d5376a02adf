"""Turns answers in WordPiece tokens back into text.

WordPiece loses white space and case: "1,500" becomes `1 , 500`, "St. John's" `st . john ' s`. That lowers exact match,
whose normalisation deletes punctuation but no space. The passages that were read still have the original text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from megatron_retrieval.data.examples.answer_spans import AnswerFinder
from megatron_retrieval.data.stores.ragged import Ragged, token_dtype
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.questions import Passage

#: patterns of tokens that belong to one written word and their replacement without spaces, in the order of use
_JOINTS = tuple(
    (re.compile(pattern), joint)
    for pattern, joint in (
        (r"(?<=\d) ([.,:]) (?=\d)", r"\1"),  # 1,500  3.5  10:30
        (r"\b(\w) \. (?=\w \.)", r"\1."),  # u.s.  j.r.r.
        (r"(?<=\w) ([-–/]) (?=\w)", r"\1"),  # twenty-one  1914–1918
        (r"(?<=\w) (['’]) (?=(?:s|t|d|m|re|ve|ll)\b)", r"\1"),  # john's  can't
        (r"\b([dlo]) (['’]) (?=\w)", r"\1\2"),  # o'brien  d'artagnan
        (r"([$£€#(\[]) (?=\S)", r"\1"),  # $5  (1889
        (r"(?<=\S) ([.,:;?!%)\]])", r"\1"),  # inc.  50%
    )
)


class AnswerForms:
    """Restores the text of answers from the passages that were read.

    Args:
        tokenizer: of answers and passages.
    """

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._finder = AnswerFinder(tokenizer, dtype)

    def text(self, ids: Sequence[int], passages: Sequence[Passage], titles: Ragged, texts: Ragged, first: int) -> str:
        """The characters of the answer in the first passage (its text, else its title) that contains its tokens as
        whole words; where no passage does, the tokens joined by `tidy`.

        Args:
            ids: of the answer; ids after its end token are ignored.
            passages: those that were read.
            titles: token ids; the passages' own begin at row `first`. `texts` likewise.
        """
        if answer := self._tokenizer.until_end(ids):
            needles = self._finder.needles(answer)
            for row, passage in enumerate(passages, first):
                for tokens, text in ((texts[row], passage.text), (titles[row], passage.title)):
                    if spans := self._finder.spans(tokens.tobytes(), needles):
                        return self._characters(text, *spans[0])
        return tidy(self._tokenizer.decode([ids])[0])

    def _characters(self, text: str, first: int, last: int) -> str:
        offsets = self._tokenizer.offsets(text)
        return text[offsets[first][0] : offsets[last][1]]


def tidy(words: str) -> str:
    """Remove the spaces that tokens put around punctuation: `u . s .` becomes "u.s.".

    Only the patterns of `_JOINTS` are joined. Quotation marks and "&" keep their spaces, since the side that they
    belong to is unknown.
    """
    for pattern, joint in _JOINTS:
        words = pattern.sub(joint, words)
    return words
