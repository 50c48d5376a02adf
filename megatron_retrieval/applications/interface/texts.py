"""What the Python interface takes as passages, and what it returns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import atomic_file

#: a text, a title with its text, a mapping with `text` and perhaps `title` and `id`, or a passage
PassageLike: TypeAlias = str | tuple[str, str] | Mapping[str, str] | Passage


@dataclass(frozen=True)
class FoundPassage(Passage):
    """A passage that a search found."""

    score: float


@dataclass(frozen=True)
class Answer:
    """What a reader says.

    Attributes:
        text: empty where it has no answer.
        score: higher is better; its meaning depends on the kind of reader.
        passage: where the answer stands; None where all passages were read together.
    """

    text: str
    score: float
    passage: Passage | None


def as_passage(given: PassageLike, number: int) -> Passage:
    """A passage in any of its forms; one without an id is called by its number, from 1.

    Raises:
        ConfigError: it is in none of them, which is said with its number.
    """
    if isinstance(given, Passage):
        return given
    if isinstance(given, str):
        return Passage(str(number), "", given)
    if isinstance(given, Mapping) and "text" in given:
        return Passage(str(given.get("id", number)), str(given.get("title", "")), str(given["text"]))
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given):
        return Passage(str(number), *given)
    raise ConfigError(
        f"passage {number}: expected a text, (title, text), or a mapping with text, title and id; got {given!r:.80}."
    )


def as_passages(given: Iterable[PassageLike]) -> list[Passage]:
    """Passages in any of their forms; see `as_passage`."""
    return [as_passage(each, number) for number, each in enumerate(given, 1)]


def as_question(given: PassageLike) -> str:
    """A question, which has one form.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(given, str):
        raise ConfigError(f"a question is a string; got {given!r:.80}.")
    return given


def write_passages(path: Path, passages: Iterable[PassageLike]) -> None:
    """A file that `build evidence` reads; passages may be a stream."""
    with atomic_file(path) as file:
        for number, given in enumerate(passages, 1):
            passage = as_passage(given, number)
            file.write(json.dumps({"id": passage.id, "title": passage.title, "text": passage.text}) + "\n")


def write_pairs(path: Path, pairs: Sequence[Sequence[PassageLike]]) -> None:
    """Training data in DPR's form.

    Args:
        pairs: of each question its text, a passage that answers it, and any number of hard negatives.

    Raises:
        ConfigError: one is no such pair.
    """
    records = []
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair, str) or len(pair) < 2 or not isinstance(pair[0], str):
            raise ConfigError(f"pair {number}: expected (question, passage) or (question, passage, negative, ...).")
        positive, *negatives = ({"title": p.title, "text": p.text} for p in as_passages(pair[1:]))
        records.append({"question": pair[0], "positive_ctxs": [positive], "hard_negative_ctxs": negatives})
    with atomic_file(path) as file:
        json.dump(records, file)
