"""Cuts running text into passages, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Literal, Protocol

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.documents.reader import Line
from megatron_retrieval.data.files.sentences import check_language, split_sentences
from megatron_retrieval.utils.scripts import join_words, split_words

Cut = Literal["words", "sentences"]


class Cutting(Protocol):
    """Where text is cut; see `CutConfig`."""

    @property
    def passage_words(self) -> int: ...
    @property
    def cut(self) -> Cut: ...
    @property
    def language(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class CutConfig(Checked):
    """Where documents are cut into passages."""

    passage_words: PositiveInt = 100
    """Maximum length of a passage in words, divided by white space; in Chinese, Japanese, Thai, ... each character is
    one."""
    cut: Cut = "sentences"
    """words: after --passage-words words; sentences: at the last sentence end before that."""
    language: str = "en"
    """Language whose rules find sentence ends for --cut sentences (ISO 639 code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_language(self.language)


def cut_passages(lines: Iterable[Line], config: Cutting) -> Iterator[Line]:
    """Yield the texts of the passages, each with the place of its first word."""
    if config.cut == "words":
        words = ((word, line.at) for line in lines for word in split_words(line.text))
        while passage := list(islice(words, config.passage_words)):
            yield Line(join_words(word for word, _ in passage), passage[0][1])
        return
    held: list[str] = []
    at = ""
    for sentence in _sentences(lines, config.language):
        words_of_sentence = split_words(sentence.text)
        if held and len(held) + len(words_of_sentence) > config.passage_words:
            yield Line(join_words(held), at)
            held = []
        at = at if held else sentence.at
        held += words_of_sentence
        while len(held) > config.passage_words:  # a sentence longer than a passage
            yield Line(join_words(held[: config.passage_words]), at)
            held, at = held[config.passage_words :], sentence.at
    if held:
        yield Line(join_words(held), at)


def _sentences(lines: Iterable[Line], language: str) -> Iterator[Line]:
    """Yield the sentences of each paragraph; a blank line, or another page, ends a paragraph."""
    for (is_blank, at), paragraph in groupby(lines, lambda line: (not line.text.strip(), line.at)):
        if not is_blank:
            for sentence in split_sentences(" ".join(line.text for line in paragraph), language):
                yield Line(sentence, at)
