"""Questions to answers: evidence with what searches it and, where there is one, a reader of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_retrieval.applications.open_reader import ReaderConfig, open_reader
from megatron_retrieval.applications.search import SearchConfig, SearchMethod, SearchSession, open_search
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, ReaderQuestion
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.predictions import Prediction
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.left_open import LeftOpenConfig
from megatron_retrieval.readers.settings import ReaderAnswersConfig
from megatron_retrieval.reports.highlight import answer_spans
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.types.questions import Passage


@dataclass(kw_only=True, frozen=True)
class AnsweringConfig(Checked):
    """What is searched, and what answers."""

    search: SearchConfig
    """What is searched."""
    reader: Path | None = None
    """Checkpoint of a reader that answers from the passages; default: passages are found, nothing is answered."""
    num_passages: PositiveInt = 10
    """Passages that the reader reads for a question."""
    answers: ReaderAnswersConfig = field(default_factory=ReaderAnswersConfig)
    """How the reader answers."""
    left_open: LeftOpenConfig = field(default_factory=LeftOpenConfig)
    """What the reader's checkpoint leaves open."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How encoder and reader are run."""
    fusion: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)
    """How a fusion reader encodes."""


@dataclass(frozen=True)
class Answered:
    """A question with what was found and read for it.

    Attributes:
        found: (passage, score), best first.
        prediction: the reader's; its text is empty where it has none. None: nothing was read.
    """

    question: str
    found: list[tuple[Passage, float]]
    prediction: Prediction | None = None

    @property
    def source(self) -> int | None:
        """Index in `found` of the passage that the answer was taken from or, where all were read jointly, of the first
        that holds its words; None where there is none."""
        if self.prediction is None or not self.prediction.text:
            return None
        if self.prediction.passage is not None:
            return self.prediction.passage
        holding = (n for n, (passage, _) in enumerate(self.found) if answer_spans(passage.text, [self.prediction.text]))
        return next(holding, None)


@dataclass(frozen=True)
class AnswerSession:
    """What `open_answering` opened; a reader is optional."""

    search: SearchSession
    reader: Reader | None
    num_passages: int

    def find(self, questions: Sequence[str], k: int, method: SearchMethod | None = None) -> list[Answered]:
        """The k best passages for each question, unread."""
        searched = self.search if method is None else self.search.by(method)
        found = searched.search(questions, k)
        return [Answered(question, passages) for question, passages in zip(questions, found, strict=True)]

    def answer(self, questions: Sequence[str], k: int, method: SearchMethod | None = None) -> list[Answered]:
        """The answer to each question from its `num_passages` best passages, and these or, if k is more, the k best.

        Where nothing is found nothing is read: an answer from the weights alone would have no source.
        """
        if self.reader is None:
            raise ValueError("no reader is open")
        found = self.find(questions, max(k, self.num_passages), method)
        to_read = [number for number, one in enumerate(found) if one.found]
        read = self.reader.answer([self._read(found[number]) for number in to_read]) if to_read else []
        predictions = dict(zip(to_read, read, strict=True))
        return [replace(one, prediction=predictions.get(number, Prediction(""))) for number, one in enumerate(found)]

    def _read(self, one: Answered) -> ReaderQuestion:
        read = one.found[: self.num_passages]
        passages, scores = tuple(passage for passage, _ in read), tuple(score for _, score in read)
        return ReaderQuestion("", one.question, (), passages, scores)


def open_answering(config: AnsweringConfig, topology: ProcessTopology) -> AnswerSession:
    """Open evidence, what searches it, and the reader.

    Raises:
        MismatchError: parts that do not belong together.
        CheckpointError: no such model there.
    """
    reader = None
    if config.reader is not None:
        chosen = ReaderConfig(
            reader=config.reader,
            answers=config.answers,
            left_open=config.left_open,
            encode=config.encode,
            fusion=config.fusion,
        )
        reading = PassagesToReadConfig(num_passages=config.num_passages)
        reader = open_reader(chosen, reading, topology, scores_of=config.search.scores_of).reader
    return AnswerSession(open_search(config.search, config.encode, topology), reader, config.num_passages)


def require_one_process(topology: ProcessTopology, what: str) -> None:
    """Refuse several ranks where one process talks to people.

    Raises:
        ConfigError: there are several.
    """
    if topology.world_size > 1:
        raise ConfigError(f"{what} runs as one process, without torchrun.")
