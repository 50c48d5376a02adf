"""`Reader`: answers from passages, in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from megatron_retrieval.applications.interface.opening import READER, Scratch, find_checkpoint
from megatron_retrieval.applications.interface.texts import Answer, FoundPassage, PassageLike, as_passages
from megatron_retrieval.applications.open_reader import AnsweringReader, ReaderConfig, open_reader
from megatron_retrieval.config.parser import config_of
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.topology import ProcessTopology, standing_topology


class Reader:
    """A reader with its weights, ready to answer.

    >>> from megatron_retrieval import Reader
    >>> reader = Reader.load("reader")
    >>> passages = ["the box of key1 stands in the corner", "the box of key2 stands in the room"]
    >>> answer = reader.answer("where is key1", passages)
    >>> answer.text in answer.passage.text
    True
    """

    def __init__(self, opened: AnsweringReader, scratch: Scratch) -> None:
        self._opened, self._scratch = opened, scratch

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | None = None, topology: ProcessTopology | None = None, **settings: Any
    ) -> Self:
        """Open a reader of any kind.

        Args:
            path: a checkpoint, a T5 of Hugging Face, or a folder with one of them as `reader`.
            device: cpu or cuda; default: cuda where it is available.
            topology: of the ranks that share the work; default: this process, or those of its torchrun.
            settings: flags of `megatron-retrieval evaluate reader` that say how it answers, such as
                `max_answer_length=16`.

        Raises:
            CheckpointError: no reader there.
            ConfigError: a setting is unknown or out of range.
        """
        topology = topology or standing_topology(device)
        scratch = Scratch(topology)
        checkpoint = find_checkpoint(path, READER, scratch, topology)
        config = config_of(ReaderConfig, reader=checkpoint, **settings)
        return cls(open_reader(config, None, topology), scratch)

    def answer(self, question: str, passages: Sequence[PassageLike] = ()) -> Answer:
        """The answer to one question; see `answer_all`."""
        return self.answer_all([question], [passages])[0]

    def answer_all(self, questions: Sequence[str], passages: Sequence[Sequence[PassageLike]]) -> list[Answer]:
        """The answer to each question from the passages in its place, best first.

        Args:
            passages: those that `Retriever.search` found keep their scores, which a reader trained together with a
                retriever weighs answers by.

        Raises:
            ConfigError: there are not as many lists of passages as questions.
        """
        if len(questions) != len(passages):
            raise ConfigError(f"{len(questions)} questions, but passages for {len(passages)}.")
        asked = [_question(*each) for each in zip(range(1, len(questions) + 1), questions, passages, strict=True)]
        answers = self._opened.reader.answer(asked)
        return [
            Answer(given.text, given.score, None if given.passage is None else question.passages[given.passage])
            for question, given in zip(asked, answers, strict=True)
        ]


def _question(number: int, text: str, given: Sequence[PassageLike]) -> ReaderQuestion:
    passages = as_passages(given)
    scores = tuple(passage.score if isinstance(passage, FoundPassage) else 0.0 for passage in passages)
    return ReaderQuestion(str(number), text, (), tuple(passages), scores)
