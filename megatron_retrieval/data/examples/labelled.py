"""Questions with positives and hard negatives, as files of training data hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from megatron_retrieval.config.checks import Checked, NonNegativeInt, PositiveFloat, PositiveInt
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.data_sets import DataSets
from megatron_retrieval.data.examples.passage_pool import NO_PASSAGE, PassageCollector
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(Checked):
    """Questions with positives and hard negatives."""

    train_data: tuple[str, ...] = field(metadata=INPUT)
    """Questions with positives and hard negatives: DPR's JSON, lines of Tevatron, FlagEmbedding or
    sentence-transformers, MS MARCO's triples, tables, Parquet, Arrow; plain or gzip."""
    train_data_weights: tuple[PositiveFloat, ...] | None = None
    """A weight for each file of --train-data: every batch is of one file, drawn in proportion to the weights; --epochs
    counts the questions of all. Default: the files are one data set."""
    num_hard_negatives: NonNegativeInt = 1
    """Hard negatives per question; 0: in-batch negatives only."""
    hard_negative_selection: Literal["sample", "first"] = "sample"
    """sample: drawn anew in every epoch; first: the first ones in the file."""
    exclude_false_negatives: bool = True
    """Do not use a passage as a negative of a question that it answers: one of its positives, or a passage whose text
    contains an answer."""
    max_train_questions: PositiveInt | None = None
    """Maximum number of questions, from the beginning of the files; default: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_data_weights and len(self.train_data_weights) != len(self.train_data):
            raise ConfigError(
                f"--train-data-weights: {len(self.train_data_weights)} weights of {len(self.train_data)} files."
            )

    def held_out(self, files: tuple[str, ...]) -> Self:
        """The same for files to evaluate on, which are read whole and in their order."""
        return replace(self, train_data=files, train_data_weights=None, max_train_questions=None)

    def identity(self, num_examples: int) -> dict[str, Any]:
        """See `MadeWith`."""
        return {
            "number of training questions": num_examples,
            "--train-data-weights": self.train_data_weights and list(self.train_data_weights),
        }


class LabelledQuestion(NamedTuple):
    """A question with the numbers of its passages in the pool."""

    question: str
    answers: tuple[str, ...]  # normalised
    positives: tuple[int, ...]
    hard_negatives: tuple[int, ...]
    file: int  # its place in --train-data
    teacher: Mapping[int, float] = MappingProxyType({})  # a teacher's scores by passage

    def teacher_scores(self, passages: Sequence[int]) -> list[float]:
        """The teacher's scores of passages, NaN where there is none."""
        return [self.teacher.get(passage, math.nan) for passage in passages]


def hard_negatives_of(
    example: LabelledQuestion,
    config: LabelledDataConfig,
    normalized_text: Callable[[int], str],
    seed: int,
    epoch: int,
    position: int,
) -> list[int]:
    """The hard negatives of an example at its position in an epoch, filled up with `NO_PASSAGE`.

    Args:
        normalized_text: the text of a passage by its number, normalised for answer matching.
        seed: of the run.
    """
    wanted, candidates = config.num_hard_negatives, example.hard_negatives
    answers = example.answers if config.exclude_false_negatives else ()
    order: Sequence[int] | Rows = range(len(candidates))
    if wanted and candidates and config.hard_negative_selection == "sample":
        order = generator(seed, "hard-negatives", epoch, position).permutation(len(candidates))
    chosen: list[int] = []
    for choice in order:
        if len(chosen) == wanted:
            break
        if not any(answer in normalized_text(candidates[choice]) for answer in answers):
            chosen.append(candidates[choice])
    return [*chosen, *[NO_PASSAGE] * (wanted - len(chosen))]


def data_sets_of(config: LabelledDataConfig, examples: Sequence[LabelledQuestion]) -> DataSets | None:
    """The files, where each is a data set of its own.

    Raises:
        DataError: one has no question to learn from.
    """
    if not config.train_data_weights:
        return None
    sizes = np.bincount([example.file for example in examples], minlength=len(config.train_data)).tolist()
    if 0 in sizes:
        raise DataError(config.train_data[sizes.index(0)], "no question has a positive passage")
    return DataSets(sizes, config.train_data_weights)


def read_examples(config: LabelledDataConfig, collector: PassageCollector) -> list[LabelledQuestion]:
    """The questions with a positive passage; their passages go to the collector.

    Raises:
        DataError: a file is malformed, or no question has a positive passage.
    """
    examples: list[LabelledQuestion] = []
    num_dropped = 0
    for example in _examples_of_files(config.train_data, collector):
        if len(examples) == config.max_train_questions:
            break
        if example.positives:
            examples.append(example)
        else:
            num_dropped += 1
    if not examples:
        raise DataError(config.train_data[0], "no question has a positive passage")
    logger = get_logger("data")
    logger.info("training questions: %s, dropped without positive: %s", f"{len(examples):,}", f"{num_dropped:,}")
    if taught := num_taught(examples):
        logger.info("questions with a teacher's scores: %s", f"{taught:,}")
    num_poor = sum(len(example.hard_negatives) < config.num_hard_negatives for example in examples)
    if num_poor:
        logger.info("questions with fewer than %d hard negatives: %s", config.num_hard_negatives, f"{num_poor:,}")
    return examples


def _examples_of_files(paths: Sequence[str], collector: PassageCollector) -> Iterator[LabelledQuestion]:
    for file, path in enumerate(paths):
        for record in read_biencoder(path):
            positives = collector.add(record.positives)
            negatives = tuple(number for number in collector.add(record.hard_negatives) if number not in positives)
            answers = (normalized(answer) for answer in record.answers)
            numbers = collector.numbers([*record.positives, *record.hard_negatives])
            scored = zip(numbers, record.teacher_scores, strict=True)
            teacher = {number: score for number, score in scored if score is not None}
            kept = tuple(answer for answer in answers if not answer.isspace())
            yield LabelledQuestion(record.question, kept, positives, negatives, file, teacher)


class MaybeTaught(Protocol):
    """Examples of which some may have a teacher's scores."""

    @property
    def num_taught(self) -> int:
        """Questions with a teacher's scores."""
        ...

    def __len__(self) -> int: ...


def num_taught(examples: Sequence[LabelledQuestion]) -> int:
    """Questions with a teacher's scores."""
    return sum(bool(example.teacher) for example in examples)


def require_teacher(
    loss: str, examples: MaybeTaught, held_out: MaybeTaught | None, *, has_labels: bool = False
) -> None:
    """Refuse questions without a teacher's scores before anything is trained: nothing would be learned from them.

    Args:
        loss: the flag that chooses what learns from the scores.
        has_labels: it learns from labels as well, so that some questions may have none.

    Raises:
        ConfigError: naming the file's flag.
    """
    for flag, data in (("--train-data", examples), ("--valid-data", held_out)):
        if data is None or data.num_taught == len(data) or (has_labels and data.num_taught):
            continue
        missing = len(data) - data.num_taught
        which = f"{missing:,} of {len(data):,} questions in {flag} have" if data.num_taught else f"{flag} has"
        raise ConfigError(
            f"{loss} learns from a teacher, and {which} no scores of one: megatron-retrieval score writes those of a "
            "cross-encoder or of late interaction into it."
        )
