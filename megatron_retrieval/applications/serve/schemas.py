"""What goes in and out of the REST interface, as its OpenAPI description gives it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from megatron_retrieval.applications.answering import Answered
from megatron_retrieval.applications.search import SearchMethod
from megatron_retrieval.applications.serve.config import ServeLimitsConfig
from megatron_retrieval.data.documents.place import Place
from megatron_retrieval.reports.highlight import answer_spans, question_words
from megatron_retrieval.types.questions import Passage

#: passages where a request names no number
DEFAULT_TOPK = 10


class Ask(BaseModel):
    """A question; `ask_model` adds the server's limits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    k: int = DEFAULT_TOPK
    method: SearchMethod | None = Field(None, description="How to search; default: the first of /health's methods.")


class Highlight(BaseModel):
    """A part of a passage's text, in characters (Unicode code points) from 0."""

    kind: Annotated[
        Literal["question", "answer"],
        Field(description="question: a word that it has too; answer: where the answer stands."),
    ]
    start: int
    stop: int


class PlainPassage(BaseModel):
    """A passage of the evidence."""

    id: str
    title: str
    text: str
    place: Annotated[str | None, Field(description="File, and page, row or line, where the id tells them.")]


class FoundPassage(PlainPassage):
    """A passage that was found."""

    score: float
    highlights: list[Highlight]


class Found(BaseModel):
    """What was found for a question, best first."""

    question: str
    method: SearchMethod
    version: Annotated[int, Field(description="Number of the version that was searched.")]
    seconds: Annotated[float, Field(description="From the arrival of the request to its answer.")]
    passages: list[FoundPassage]


class AnswerFound(Found):
    """An answer and the passages that it was read from."""

    answer: Annotated[str, Field(description="Empty where the reader has none.")]
    answer_score: float
    source: Annotated[int | None, Field(description="Index among the passages of the one that the answer is from.")]


class InContext(PlainPassage):
    """A passage between its neighbours: of the same file or, where ids tell none, of the same title."""

    before: list[PlainPassage]
    after: list[PlainPassage]


class Health(BaseModel):
    """What is served."""

    status: Literal["ok"]
    version: Annotated[int, Field(description="From 1; one more whenever newer files took the place of the old.")]
    opened: Annotated[str, Field(description="When this version was.")]
    is_refusing_newer: Annotated[bool, Field(description="Newer files are there, but unusable; the log says why.")]
    num_passages: int
    methods: list[SearchMethod]
    has_reader: bool
    has_documents: Annotated[bool, Field(description="/documents/{id} gives the file that a passage is from.")]
    evidence_fingerprint: str
    encoder_fingerprint: str | None
    max_question_length: int
    max_k: int
    num_waiting: int
    num_batches: int
    num_questions: int


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


def ask_model(limits: ServeLimitsConfig) -> type[Ask]:
    """The class of requests within the server's limits."""
    text = StringConstraints(strip_whitespace=True, min_length=1, max_length=limits.max_question_length)
    k = Field(min(DEFAULT_TOPK, limits.max_topk), ge=1, le=limits.max_topk)
    return create_model("Ask", __base__=Ask, __doc__="A question.", question=(Annotated[str, text], ...), k=(int, k))


def plain(passage: Passage) -> PlainPassage:
    """A passage as it is."""
    place = Place.of(passage.id)
    return PlainPassage(**vars(passage), place=None if place is None else str(place))


def found_passages(answered: Answered, k: int) -> list[FoundPassage]:
    """The k first passages, with what to look at in them."""
    answers = [answered.prediction.text] if answered.prediction else []
    passages = []
    for passage, score in answered.found[:k]:
        words, spans = question_words(passage.text, answered.question), answer_spans(passage.text, answers)
        highlights = [Highlight(kind="question", start=start, stop=stop) for start, stop in words]
        highlights += [Highlight(kind="answer", start=start, stop=stop) for start, stop in spans]
        passages.append(FoundPassage(**vars(plain(passage)), score=score, highlights=highlights))
    return passages
