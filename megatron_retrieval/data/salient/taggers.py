"""What finds names in sentences: rules, or a pipeline of spaCy."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from megatron_retrieval.data.salient.spans import UNTYPED, Span
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils.registry import Registry


class TitledSentences(NamedTuple):
    """A text in sentences, without runs of white space; light, since it crosses between processes."""

    title: str
    sentences: tuple[str, ...]


class Tagger(Protocol):
    """Finds names.

    Attributes:
        version: what the spans depend on: the names and versions of program and model.
    """

    version: str

    def tag(self, texts: Sequence[TitledSentences], census: Counter[str]) -> list[list[list[Span]]]:
        """The names in every sentence of every text; no two overlap.

        Args:
            census: spans that are left out are counted here, by reason.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TaggerKind:
    """A kind of tagger.

    Attributes:
        name: the value of `--tagger`.
        about: what it finds, in one clause.
        open: the value of `--tagger-model` to a tagger; None: spans come with the sentences.
    """

    name: str
    about: str
    open: Callable[[str | None], Tagger | None]


TAGGERS: Registry[TaggerKind] = Registry("tagger")

_WORD = re.compile(r"\w+(?:[-'’&]\w+)*")
#: what may stand in lower case inside a name
_INSIDE = frozenset(("of", "the", "de"))


class RulesTagger:
    """Runs of capitalised words, inside which "of", "the" and "de" may stand in lower case.

    The first word of a sentence belongs to a name only if it is capitalised inside a sentence of the text or in the
    title as well: there its capital means something.
    """

    version = "rules, version 1"

    def tag(self, texts: Sequence[TitledSentences], census: Counter[str]) -> list[list[list[Span]]]:
        """See Tagger."""
        return [self._tag(text) for text in texts]

    def _tag(self, text: TitledSentences) -> list[list[Span]]:
        words = [list(_WORD.finditer(sentence)) for sentence in text.sentences]
        known = {word for own in words for match in own[1:] if _is_capitalised(word := match.group())}
        known.update(_WORD.findall(text.title))
        return [list(_runs(*pair, known)) for pair in zip(text.sentences, words, strict=True)]


def _runs(sentence: str, words: Sequence[re.Match[str]], known: set[str]) -> Iterator[Span]:
    """The maximal runs of a sentence."""
    first: re.Match[str] | None = None
    last = before = None
    for number, match in enumerate(words):
        word = match.group()
        if first is not None and before is not None and not _joins(sentence, before, match):
            assert last is not None
            yield Span(first.start(), last.end(), UNTYPED)
            first = None
        if _is_capitalised(word) and (number or word in known):
            first, last = first or match, match
        elif first is not None and word not in _INSIDE:
            assert last is not None
            yield Span(first.start(), last.end(), UNTYPED)
            first = None
        before = match
    if first is not None and last is not None:
        yield Span(first.start(), last.end(), UNTYPED)


def _joins(sentence: str, before: re.Match[str], after: re.Match[str]) -> bool:
    """Whether only a space stands between two words, or the full stop of an initial."""
    between = sentence[before.end() : after.start()]
    return between == " " or (between == ". " and len(before.group()) == 1)


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() and word != "I"


class SpacyTagger:
    """A pipeline of spaCy that recognises named entities; it is given whole texts.

    Args:
        model: folder or name of the pipeline.

    Raises:
        ConfigError: spaCy is not installed, or no pipeline is named.
        DataError: the pipeline cannot be loaded, or recognises no entities.
    """

    def __init__(self, model: str | None) -> None:
        if model is None:
            raise ConfigError("--tagger spacy needs --tagger-model: the folder or the name of a pipeline.")
        try:
            import spacy
        except ImportError as error:
            hint = "install it (pip install 'megatron-retrieval[spans]'), or take --tagger rules."
            raise ConfigError(f"--tagger spacy: spaCy is not installed; {hint}") from error
        try:
            # the other parts would cost half of the time, and entities do not depend on them
            self._pipeline: Any = spacy.load(model, exclude=["tagger", "parser", "attribute_ruler", "lemmatizer"])
        except (OSError, ValueError) as error:
            raise DataError(model, f"spaCy cannot load a pipeline from here ({error})") from error
        if "ner" not in self._pipeline.pipe_names:
            raise DataError(model, "the pipeline recognises no named entities")
        about = self._pipeline.meta
        self.version = f"spaCy {version('spacy')}, {about['lang']}_{about['name']} {about['version']}"

    def tag(self, texts: Sequence[TitledSentences], census: Counter[str]) -> list[list[list[Span]]]:
        """See Tagger."""
        documents = self._pipeline.pipe([" ".join(text.sentences) for text in texts])
        return [_by_sentence(text, found, census) for text, found in zip(texts, documents, strict=True)]


def _by_sentence(text: TitledSentences, document: Any, census: Counter[str]) -> list[list[Span]]:
    starts = [0, *accumulate(len(sentence) + 1 for sentence in text.sentences)]
    found: list[list[Span]] = [[] for _ in text.sentences]
    for entity in document.ents:
        place = bisect_right(starts, entity.start_char) - 1
        if entity.end_char >= starts[place + 1]:
            census["span: beyond the end of its sentence"] += 1
        else:
            start = starts[place]
            found[place].append(Span(entity.start_char - start, entity.end_char - start, entity.label_))
    return found


TAGGERS.add(
    TaggerKind(name="rules", about="runs of capitalised words, without a model", open=lambda model: RulesTagger())
)
TAGGERS.add(TaggerKind(name="spacy", about="entities that a pipeline of spaCy recognises", open=SpacyTagger))
TAGGERS.add(TaggerKind(name="import", about="nothing: spans stand in the files of --input", open=lambda model: None))
