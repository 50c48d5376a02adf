"""Questions for a reader, with the passages of their file or retrieved ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.search import SearchConfig, SearchOptionsConfig, open_search
from megatron_retrieval.data.files.passage_questions import (
    PassagesToReadConfig,
    QuestionCensus,
    ReaderQuestion,
    read_reader_questions,
)
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.retrieval_results import questions_with_passages, recorded, retrieval_metrics
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig


@dataclass(kw_only=True, frozen=True)
class PassageSearchConfig:
    """Retrieval of the passages: by a dual encoder, BM25, or both."""

    retriever: Path | None = None
    """Checkpoint of a dual encoder that retrieves the passages; without it and --bm25-index, those of the question file
    are read."""
    evidence: Path | None = None
    """Folder of the evidence that is searched (build evidence)."""
    embeddings: Path | None = None
    """Folder of the evidence's embeddings by the retriever (embed)."""
    embedded_by: Path | None = None
    """Checkpoint that made the embeddings, where --retriever has the same encoder of passages, frozen in training."""
    bm25_index: Path | None = None
    """Folder of the evidence's BM25 index (build bm25); beside --retriever: both are searched."""
    options: SearchOptionsConfig = field(default_factory=SearchOptionsConfig)
    """How."""
    matching: AnswerMatchConfig = field(default_factory=AnswerMatchConfig)
    """When a retrieved passage contains an answer."""

    def __post_init__(self) -> None:
        if (self.retriever is None) != (self.embeddings is None):
            raise ConfigError("--retriever and --embeddings belong together: give both, or none.")
        if self.is_given != (self.evidence is not None):
            raise ConfigError("--evidence is what --retriever or --bm25-index searches: give it with either, or none.")
        if self.retriever is None and self.options.approximate.index is not None:
            raise ConfigError("--index is what a retriever searches: give --retriever as well.")

    @property
    def is_given(self) -> bool:
        """Whether passages are searched."""
        return self.retriever is not None or self.bm25_index is not None

    def what(self) -> SearchConfig | None:
        """What is searched; None where nothing is."""
        if self.evidence is None:
            return None
        return SearchConfig(
            evidence=self.evidence,
            embeddings=self.embeddings,
            retriever=self.retriever,
            embedded_by=self.embedded_by,
            bm25_index=self.bm25_index,
            options=self.options,
        )


@dataclass(kw_only=True, frozen=True)
class QuestionsToReadConfig:
    """Questions for a reader, and the passages that it reads."""

    questions: Path
    """Questions with passages: results.json of retriever-evaluate, DPR's or FiD's JSON; with --retriever or
    --bm25-index, which find passages for all, or --closed-book also DPR .qa.csv, JSON lines, or DPR biencoder JSON;
    plain or gzip."""
    asked: AskedQuestionsConfig = field(default_factory=AskedQuestionsConfig)
    """Which questions are asked, and how."""
    reading: PassagesToReadConfig = field(default_factory=PassagesToReadConfig)
    """Which passages are read."""
    search: PassageSearchConfig = field(default_factory=PassageSearchConfig)
    """How passages are retrieved."""

    def __post_init__(self) -> None:
        if self.reading.closed_book and self.search.is_given:
            raise ConfigError("--closed-book reads no passages, --retriever or --bm25-index finds some: give one.")


@dataclass(frozen=True)
class QuestionsToRead:
    """Questions with their passages, which can be iterated repeatedly; texts of passages are not kept.

    Attributes:
        read: yields the questions one at a time and counts them in the census.
        retrieval_metrics: recall and the settings that it depends on; empty where the file holds the passages.
    """

    read: Callable[[QuestionCensus], Iterator[ReaderQuestion]]
    retrieval_metrics: dict[str, Any]


def open_questions(config: QuestionsToReadConfig, encode: EncodeConfig, topology: ProcessTopology) -> QuestionsToRead:
    """Retrieve the passages, unless the file holds them; a collective over all ranks.

    Args:
        encode: how the retriever encodes questions.

    Raises:
        MismatchError: retriever, evidence and embeddings do not belong together.
        DataError: the questions cannot be read; those with passages are read later.
    """
    search = config.search.what()
    if search is None:
        return QuestionsToRead(lambda census: _from_file(config, census), {})
    questions = list(read_questions(config.questions, config.asked))
    session, matcher = open_search(search, encode, topology), AnswerMatcher(config.search.matching)
    depth = config.reading.num_passages
    retrieved = session.evaluate(questions, matcher, topology, depth=depth, micro_batch_size=encode.micro_batch_size)
    metrics = {
        **retrieval_metrics(retrieved.ranks, [depth]),
        **recorded(config.search.matching),
        "num_bad_patterns": matcher.num_bad_patterns,
        "num_evidence_passages": len(session.evidence),
        **session.protocol(),
    }
    found = partial(questions_with_passages, questions, retrieved, session.evidence, k=depth)
    return QuestionsToRead(found, metrics)


def _from_file(config: QuestionsToReadConfig, census: QuestionCensus) -> Iterator[ReaderQuestion]:
    return read_reader_questions(config.questions, config.reading, census, config.asked)
