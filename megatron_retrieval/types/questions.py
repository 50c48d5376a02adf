"""Questions and passages as text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """One passage of the evidence; `id` is the external id of the file it came from."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """One question with its acceptable answers (strings, or regular expressions where the file says so)."""

    id: str
    text: str
    answers: tuple[str, ...]
    #: external ids of the passages known to hold the answer; empty where gold is unknown
    gold_passage_ids: tuple[str, ...] = ()
