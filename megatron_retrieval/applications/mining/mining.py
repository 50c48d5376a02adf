"""Training data from retrieval results: hard negatives (DPR, arXiv 2004.04906; ANCE, 2007.00808), and positives by
distant supervision (DPR section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.mining.rules import Hit, MiningRulesConfig, hard_negatives
from megatron_retrieval.applications.search import open_lexical
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.dpr_json import biencoder_context, write_json_list
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import ANSWERS, CONTEXTS
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.question_files import question_columns, read_questions
from megatron_retrieval.data.files.records import read_records
from megatron_retrieval.data.files.sniff import FileKind, sniff
from megatron_retrieval.data.files.training_files import read_training_records
from megatron_retrieval.data.files.trec import read_run
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import worker_pool

#: passages cached; frequent ones are found for many questions
_CACHED_PASSAGES = 1 << 16


@dataclass(kw_only=True, frozen=True)
class MineNegativesConfig(Checked):
    """Mine hard negatives: passages that a retriever ranks high and that contain no answer."""

    train_data: Path
    """Training data whose questions get hard negatives (DPR, Tevatron, FlagEmbedding, sentence-transformers); with
    --distant-supervision any file of questions."""
    results: Path | None = None
    """What was found for the same questions: results.json of retriever-evaluate, DPR's or Pyserini's JSON, or a TREC
    run with --evidence; or give --bm25-index."""
    bm25_index: Path | None = None
    """BM25 index (tools/build_bm25.py) that finds the passages instead of --results."""
    evidence: Path | None = None
    """Folder of the evidence of --bm25-index, or of a TREC run."""
    output: Path
    """The biencoder JSON to write."""
    rules: MiningRulesConfig = field(default_factory=MiningRulesConfig)
    """Which of the passages found become hard negatives."""
    distant_supervision: PositiveInt | None = None
    """Use the best-ranked passage with an answer among the first n as the positive, instead of those of the file;
    questions without such a passage are dropped."""
    matching: AnswerMatchConfig = field(default_factory=AnswerMatchConfig)
    """When a passage contains an answer."""
    workers: PositiveInt = 1
    """Processes that search and match; the result does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.results is None) == (self.bm25_index is None):
            raise ConfigError("Give one of --results and --bm25-index: what found the passages.")
        if self.bm25_index is not None and self.evidence is None:
            raise ConfigError("--bm25-index and --evidence belong together: give both, or --results alone.")
        if self.results is not None and (sniff(self.results) is FileKind.RUN) != (self.evidence is not None):
            raise ConfigError("--evidence belongs to --bm25-index, or to a TREC run in --results, which has no texts.")


@dataclass
class MiningCensus:
    """Counts of the questions by outcome."""

    written: int = 0
    mined_negatives: int = 0
    without_hard_negative: int = 0
    #: dropped, because none of the first passages contains an answer
    without_positive: int = 0

    def add(self, mined: _Mined) -> None:
        """Count one more question."""
        if mined.record is None:
            self.without_positive += 1
            return
        self.written += 1
        self.mined_negatives += mined.num_mined
        self.without_hard_negative += not mined.record["hard_negative_ctxs"]


@dataclass(frozen=True)
class _Example:
    """A question with its passages so far.

    Attributes:
        values: the record to write, without mined passages.
        kept: its hard negatives so far.
        hits: retrieved passages, best first; None: not searched yet.
    """

    values: dict[str, Any]
    question: str
    answers: tuple[str, ...]
    positives: tuple[Passage, ...]
    kept: tuple[Passage, ...]
    hits: tuple[Hit, ...] | None = None


@dataclass(frozen=True)
class _Mined:
    """The record to write, None where no positive was found; and the number of mined passages."""

    record: dict[str, Any] | None
    num_mined: int = 0


def mine_negatives(config: MineNegativesConfig) -> MiningCensus:
    """Write `config.output`.

    Raises:
        ConfigError: the results are of other questions.
        MismatchError: the BM25 index is of another evidence.
        DataError: a file is malformed, or no question is left.
    """
    census = MiningCensus()
    if config.workers > 1:
        _Miner(config)  # opened here first, so that errors of the index are raised once

    def records() -> Iterator[dict[str, Any]]:
        with (
            worker_pool(_Miner.mine, config.workers, partial(_Miner, config)) as mine,
            progress_bar("Mining", "questions") as bar,
        ):
            for mined in mine(_examples(config)):
                census.add(mined)
                if mined.record is not None:
                    yield mined.record
                bar.update()
        if not census.written:
            raise DataError(config.train_data, "no question of the file has an answer in the passages found for it")

    write_json_list(config.output, records())
    return census


def _examples(config: MineNegativesConfig) -> Iterator[_Example]:
    examples = _read_questions(config) if config.distant_supervision is not None else _read_training_data(config)
    if config.results is None:
        return examples
    if config.evidence is not None:
        return _with_run(examples, config)
    return _with_results(examples, config.results, config.train_data)


def _read_questions(config: MineNegativesConfig) -> Iterator[_Example]:
    for question in read_questions(config.train_data):
        values = {"question": question.text, "answers": list(question.answers), "negative_ctxs": []}
        yield _Example(values, question.text, question.answers, (), ())


def _read_training_data(config: MineNegativesConfig) -> Iterator[_Example]:
    for record in read_training_records(config.train_data):
        positives, negatives = record.records("positive_ctxs"), record.records("hard_negative_ctxs", required=False)
        yield _Example(
            record.values,
            record.text("question"),
            record.strings(*ANSWERS, required=False),
            tuple(map(passage_of, positives)),
            tuple(map(passage_of, negatives)),
        )


def _with_results(examples: Iterator[_Example], path: Path, asked: Path) -> Iterator[_Example]:
    """Yield the examples with their retrieved passages; the results must be in the order of the questions."""
    results = read_records(path, question_columns)
    for example in examples:
        found = next(results, None)
        if found is None or found.text("question") != example.question:
            raise ConfigError(
                f"{path} does not hold the questions of {asked} in their order; it parts from them at "
                f"{example.question!r}. Evaluate that file, without stride or limit."
            )
        yield replace(example, hits=tuple(map(_hit, found.records(*CONTEXTS))))


def _with_run(examples: Iterator[_Example], config: MineNegativesConfig) -> Iterator[_Example]:
    """The same from a TREC run, whose passages the evidence holds; it leaves out questions that found nothing."""
    assert config.results is not None
    assert config.evidence is not None
    evidence, run = EvidenceStore(config.evidence), read_run(config.results)
    topic = next(run, None)
    for number, example in enumerate(examples, 1):
        if topic is None or topic[0] != str(example.values.get("id", number)):
            yield replace(example, hits=())
            continue
        ids, scores = zip(*topic[1], strict=True)
        rows = evidence.rows_of(ids)
        if (rows < 0).any():
            lacking = ids[int((rows < 0).argmax())]
            raise MismatchError(
                f"The evidence in {config.evidence} has no passage {lacking!r}, which {config.results} found."
            )
        passages = evidence.passages(rows)
        yield replace(example, hits=tuple(map(Hit, passages, scores)))
        topic = next(run, None)
    if topic is not None:
        raise ConfigError(
            f"{config.results} does not hold the questions of {config.train_data} in their order: {topic[0]!r} stands "
            "elsewhere there, or not at all."
        )


def _hit(context: Record) -> Hit:
    score = context.values.get("score", 0)
    try:
        return Hit(passage_of(context), float(score), bool(context.values.get("has_answer")))
    except (TypeError, ValueError) as error:
        raise context.error(f"{score!r} is no score") from error


class _Miner:
    """Mines for one question after the other.

    Raises:
        MismatchError: the BM25 index is of another evidence.
    """

    def __init__(self, config: MineNegativesConfig) -> None:
        self._config, self._matcher = config, AnswerMatcher(config.matching)
        if config.bm25_index is not None:
            assert config.evidence is not None
            evidence = EvidenceStore(config.evidence)
            self._index = open_lexical(config.bm25_index, evidence)
            self._passage = lru_cache(_CACHED_PASSAGES)(evidence.passage)

    def mine(self, example: _Example) -> _Mined:
        """Choose positive and negatives among the retrieved passages."""
        config, values, positives = self._config, example.values, example.positives
        hits = self._search(example.question) if example.hits is None else example.hits
        holds_answer = self._matcher.for_answers(example.answers)
        if config.distant_supervision is not None:
            positive = next((hit for hit in hits[: config.distant_supervision] if holds_answer(hit.passage)), None)
            if positive is None:
                return _Mined(None)
            positives = (positive.passage,)
            values = {**values, "positive_ctxs": [biencoder_context(positive.passage, positive.score)]}
        kept = example.kept if config.rules.keep_hard_negatives else ()
        mined = hard_negatives(hits, positives, kept, holds_answer, config.rules)
        contexts = [biencoder_context(hit.passage, hit.score) for hit in mined]
        if kept:
            contexts = [*values.get("hard_negative_ctxs", []), *contexts]
        return _Mined({**values, "hard_negative_ctxs": contexts}, len(mined))

    def _search(self, question: str) -> Sequence[Hit]:
        depth = max(self._config.rules.max_rank, self._config.distant_supervision or 0)
        result = self._index.search([question], depth)
        rows, scores = result.rows[0].tolist(), result.scores[0].tolist()
        return [Hit(self._passage(row), score) for row, score in zip(rows, scores, strict=True) if row >= 0]
