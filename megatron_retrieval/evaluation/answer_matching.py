"""Whether a passage contains an answer: DPR's `has_answer`, with its variants as settings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.logging import get_logger

log = get_logger("evaluation")

#: normalised passages kept; frequent passages are retrieved for many questions
_CACHED_PASSAGES = 1 << 16


@dataclass(kw_only=True, frozen=True)
class AnswerMatchConfig:
    """When a passage counts as containing an answer; recorded in every result."""

    answer_match: Literal["string", "regex"] = "string"
    """string: the passage has the answer's tokens in a row, after NFD and in lower case. regex: answers are regular
    expressions, as in CuratedTREC, searched in the NFD text, case-insensitive and multi-line."""
    match_title: bool = False
    """Search the title as well as the text; published figures search the text only."""


class AnswerMatcher:
    """Tells whether a passage contains one of a question's answers.

    An invalid regular expression never matches, as in DPR; it is logged and counted in `num_bad_patterns`.
    """

    def __init__(self, config: AnswerMatchConfig) -> None:
        self._config = config
        self._normalized = lru_cache(_CACHED_PASSAGES)(normalized)
        self.num_bad_patterns = 0

    def for_answers(self, answers: Sequence[str]) -> Callable[[Passage], bool]:
        """The test for one question's answers, compiled once for all of its passages."""
        if self._config.answer_match == "regex":
            patterns = [pattern for answer in answers if (pattern := self._compile(answer)) is not None]
            return lambda passage: any(pattern.search(_nfd(self._searched(passage))) for pattern in patterns)
        # An answer without tokens ("...": only separators or control characters) is never found.
        wanted = [text for answer in answers if (text := normalized(answer)).strip()]
        return lambda passage: any(text in self._normalized(self._searched(passage)) for text in wanted)

    def hits(self, answers: Sequence[str], passages: Sequence[Passage]) -> list[bool]:
        """For each passage, whether it contains an answer."""
        return list(map(self.for_answers(answers), passages))

    def _searched(self, passage: Passage) -> str:
        return f"{passage.title}\n{passage.text}" if self._config.match_title else passage.text

    def _compile(self, answer: str) -> re.Pattern[str] | None:
        try:
            return re.compile(_nfd(answer), re.IGNORECASE | re.UNICODE | re.MULTILINE)
        except re.error as error:
            self.num_bad_patterns += 1
            log.warning("the answer %r is not a regular expression (%s) and matches nothing", answer, error)
            return None


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)
