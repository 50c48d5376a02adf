"""Answers written in WordPiece as text again.

Tokens have lost how an answer was written: "1,500" becomes `1 , 500`, "St. John's" `st . john ' s`. That costs exact
match, whose normalisation deletes punctuation but no space. The passages that were read still have it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from megatron_retrieval.data.examples.answer_spans import AnswerFinder
from megatron_retrieval.data.stores.ragged import Ragged, token_dtype
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.questions import Passage

#: where tokens of one written word meet, what stands there instead of spaces; in this order
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
    """Gives answers the form in which a passage has them.

    Args:
        tokenizer: what answers and passages are written in.
    """

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._finder = AnswerFinder(tokenizer.continues_word(), dtype)

    def text(self, ids: Sequence[int], passages: Sequence[Passage], titles: Ragged, texts: Ragged, first: int) -> str:
        """The characters of the first passage (its text, else its title) whose tokens hold those of the answer in a
        row, as whole words; where there is none, the tokens as `tidy` joins them.

        Args:
            ids: of the answer; what stands behind its end token is left out.
            passages: what was read.
            titles: token ids, the passages' own from row `first` on; likewise `texts`.
        """
        if answer := self._tokenizer.until_end(ids):
            needle = self._finder.needle(answer)
            for row, passage in enumerate(passages, first):
                for tokens, text in ((texts[row], passage.text), (titles[row], passage.title)):
                    if spans := self._finder.spans(tokens.tobytes(), [needle]):
                        return self._characters(text, *spans[0])
        return tidy(self._tokenizer.decode([ids])[0])

    def _characters(self, text: str, first: int, last: int) -> str:
        offsets = self._tokenizer.offsets(text)
        return text[offsets[first][0] : offsets[last][1]]


def tidy(words: str) -> str:
    """Words and punctuation, all with spaces between them, as they are usually written: `u . s .` is "u.s.".

    Only the joints of `_JOINTS` are closed. Quotation marks and "&" keep their spaces, since nothing tells to which
    side they belong.
    """
    for pattern, joint in _JOINTS:
        words = pattern.sub(joint, words)
    return words
