"""A reranker's scores of training data, which other models learn as a teacher's (arXiv 2010.02666)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.reranking import open_reranker
from megatron_retrieval.config.checks import Checked
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import QUESTIONS, TEACHER_SCORE
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.training_files import read_training_records
from megatron_retrieval.data.files.training_formats import TrainingFormat, write_training_data
from megatron_retrieval.errors import DataError
from megatron_retrieval.parallel.collectives import gather_objects, on_first_rank
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.reranker import RerankConfig, Reranker
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar

#: questions between two exchanges of the ranks' scores, of each copy of the model
_QUESTIONS_AT_ONCE = 64
_PASSAGES = ("positive_ctxs", "hard_negative_ctxs")


@dataclass(kw_only=True, frozen=True)
class TeacherScoresConfig(Checked):
    """Score positives and hard negatives of training data by a cross-encoder, late interaction or a reader. Under
    torchrun copies share the work."""

    train_data: Path
    """Training data (DPR, Tevatron, FlagEmbedding, sentence-transformers)."""
    checkpoint: Path
    """Checkpoint of the cross-encoder, of late interaction (ColBERT) or of the extractive reader."""
    output: Path
    """The file of training data to write: the same questions and passages, with scores."""
    output_format: TrainingFormat = "dpr"
    """dpr: teacher_score of each passage. tevatron: score of each passage. flagembedding: pos_scores and neg_scores.
    sentence-transformers: a triplet for each hard negative, score holds both."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How it is run."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def main(config: TeacherScoresConfig, topology: ProcessTopology) -> None:
    """Write `config.output`.

    Raises:
        DataError: a file is malformed or empty.
        CheckpointError: nothing there that scores passages.
    """
    teacher = open_reranker(RerankConfig(rerank=config.checkpoint), config.encode, topology)
    assert teacher is not None
    scores = _all_scores(config.train_data, teacher, topology)
    if not scores:
        raise DataError(config.train_data, "there is no question")

    def write() -> None:
        records = zip(read_training_records(config.train_data), scores, strict=True)
        write_training_data(config.output, (_with_scores(*pair) for pair in records), config.output_format)

    on_first_rank(write, topology.world_group)
    num_passages = sum(map(len, scores))
    get_logger().info("%s passages of %s questions in %s", f"{num_passages:,}", f"{len(scores):,}", config.output)


def _all_scores(path: Path, teacher: Reranker, topology: ProcessTopology) -> list[list[float]]:
    """Of the passages of each question, on every rank; the copies of the model take questions in turn."""
    group, found = topology.groups.dp, list[list[float]]()
    with progress_bar("Scoring", "questions", visible=topology.is_main) as bar:
        for block in _blocks(path, _QUESTIONS_AT_ONCE * group.size()):
            own = [_scores(record, teacher) for record in block[group.rank() :: group.size()]]
            shares = gather_objects(own, group)
            found += [shares[place % group.size()][place // group.size()] for place in range(len(block))]
            bar.update(len(block))
    return found


def _blocks(path: Path, size: int) -> Iterator[list[Record]]:
    records = iter(read_training_records(path))
    while block := list(islice(records, size)):
        yield block


def _scores(record: Record, teacher: Reranker) -> list[float]:
    """Of positives and hard negatives."""
    passages = [passage_of(context) for context in _contexts(record)]
    scores: list[float] = teacher.scores(record.text(*QUESTIONS), passages).tolist() if passages else []
    return scores


def _contexts(record: Record) -> list[Record]:
    return list(chain.from_iterable(record.records(key, required=False) for key in _PASSAGES))


def _with_scores(record: Record, scores: list[float]) -> dict[str, Any]:
    values, rest = dict(record.values), iter(scores)
    for key in _PASSAGES:
        contexts = record.records(key, required=False)
        values[key] = [{**context.values, TEACHER_SCORE: next(rest)} for context in contexts]
    return values
