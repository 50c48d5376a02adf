"""Training data from retrieval results: hard negatives (DPR, arXiv 2004.04906; ANCE, 2007.00808), and positives by
distant supervision (DPR section 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.mining.found import FoundPassages
from megatron_retrieval.applications.mining.rules import Hit, MiningRulesConfig, hard_negatives, rescored
from megatron_retrieval.applications.reranking import open_reranker
from megatron_retrieval.applications.search import open_lexical
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.dpr_json import biencoder_context
from megatron_retrieval.data.files.names import ANSWERS, QUESTION_IDS
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.sniff import FileKind, sniff
from megatron_retrieval.data.files.training_files import read_training_records
from megatron_retrieval.data.files.training_formats import TrainingFormat, write_training_data
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.reranker import RerankConfig, Reranker
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.logging import get_logger
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
    """BM25 index (build bm25) that finds the passages instead of --results."""
    evidence: Path | None = None
    """Folder of the evidence of --bm25-index, or of a TREC run."""
    output: Path
    """The file of training data to write."""
    output_format: TrainingFormat = "dpr"
    """dpr: biencoder JSON. tevatron, flagembedding: a line a question. sentence-transformers: a triplet for each hard
    negative. Titles stand before the texts where a format has none."""
    rules: MiningRulesConfig = field(default_factory=MiningRulesConfig)
    """Which of the passages found become hard negatives."""
    rerank: RerankConfig = field(default_factory=RerankConfig)
    """What scores the passages found, and the positives, anew: then ranks and scores of the rules are its own, and
    passages that it did not see are dropped."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How it is run."""
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
        if self.rerank.rerank is not None and self.workers > 1:
            raise ConfigError("--rerank scores in this process alone: leave out --workers.")
        if self.rerank.rerank_weight != 1:
            raise ConfigError("Positives have no score of the search to add: leave out --rerank-weight.")
        if self.results is None or not self.results.exists():  # reading it says that it is not there
            return
        if (sniff(self.results) is FileKind.RUN) != (self.evidence is not None):
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
        id: the record's, or else its number in the file, from 1.
        values: the record to write, without mined passages.
        kept: its hard negatives so far.
        hits: retrieved passages, best first; None: not searched yet.
    """

    id: str
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


def main(config: MineNegativesConfig) -> None:
    """Mine, and say how much came of it."""
    with contextlib.ExitStack() as stack:
        reranker = None
        if config.rerank.rerank is not None:
            topology = stack.enter_context(process_topology(ParallelConfig()))
            reranker = open_reranker(config.rerank, config.encode, topology)
        census = mine_negatives(config, reranker)
    get_logger().info(
        "%s questions in %s with %s mined hard negatives; %s of them without any hard negative; "
        "%s dropped without a positive",
        f"{census.written:,}",
        config.output,
        f"{census.mined_negatives:,}",
        f"{census.without_hard_negative:,}",
        f"{census.without_positive:,}",
    )


def mine_negatives(config: MineNegativesConfig, reranker: Reranker | None = None) -> MiningCensus:
    """Write `config.output`.

    Args:
        reranker: that of `config.rerank`.

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
            worker_pool(_Miner.mine, config.workers, partial(_Miner, config, reranker)) as mine,
            progress_bar("Mining", "questions") as bar,
        ):
            for mined in mine(_examples(config)):
                census.add(mined)
                if mined.record is not None:
                    yield mined.record
                bar.update()
        if not census.written:
            raise DataError(config.train_data, "no question of the file has an answer in the passages found for it")

    write_training_data(config.output, records(), config.output_format)
    return census


def _examples(config: MineNegativesConfig) -> Iterator[_Example]:
    examples = _read_questions(config) if config.distant_supervision is not None else _read_training_data(config)
    if config.results is None:
        yield from examples
        return
    found = FoundPassages(config.results, config.train_data, config.evidence)
    for example in examples:
        yield replace(example, hits=tuple(found.of(example.id, example.question)))
    found.require_end()


def _read_questions(config: MineNegativesConfig) -> Iterator[_Example]:
    for question in read_questions(config.train_data):
        values = {"question": question.text, "answers": list(question.answers), "negative_ctxs": []}
        yield _Example(question.id, values, question.text, question.answers, (), ())


def _read_training_data(config: MineNegativesConfig) -> Iterator[_Example]:
    for number, record in enumerate(read_training_records(config.train_data), 1):
        positives, negatives = record.records("positive_ctxs"), record.records("hard_negative_ctxs", required=False)
        answers = record.strings(*ANSWERS, required=False)
        yield _Example(
            record.identifier(*QUESTION_IDS) or str(number),
            {**record.values, "answers": list(answers)},
            record.text("question"),
            answers,
            tuple(map(passage_of, positives)),
            tuple(map(passage_of, negatives)),
        )


class _Miner:
    """Mines for one question after the other.

    Raises:
        MismatchError: the BM25 index is of another evidence.
    """

    def __init__(self, config: MineNegativesConfig, reranker: Reranker | None = None) -> None:
        self._config, self._matcher, self._reranker = config, AnswerMatcher(config.matching), reranker
        if config.bm25_index is not None:
            assert config.evidence is not None
            evidence = EvidenceStore(config.evidence)
            self._index = open_lexical(config.bm25_index, evidence)
            self._passage = lru_cache(_CACHED_PASSAGES)(evidence.passage)

    def mine(self, example: _Example) -> _Mined:
        """Choose positive and negatives among the retrieved passages."""
        config, values, positives = self._config, example.values, example.positives
        hits = self._search(example.question) if example.hits is None else example.hits
        positive_score = None
        if self._reranker is not None:
            hits, positive_score = rescored(example.question, hits, positives, self._reranker)
        holds_answer = self._matcher.for_answers(example.answers)
        if config.distant_supervision is not None:
            positive = next((hit for hit in hits[: config.distant_supervision] if holds_answer(hit.passage)), None)
            if positive is None:
                return _Mined(None)
            positives = (positive.passage,)
            values = {**values, "positive_ctxs": [biencoder_context(positive.passage, positive.score)]}
        kept = example.kept if config.rules.keep_hard_negatives else ()
        mined = hard_negatives(hits, positives, kept, holds_answer, config.rules, positive_score)
        contexts = [biencoder_context(hit.passage, hit.score) for hit in mined]
        if kept:
            contexts = [*values.get("hard_negative_ctxs", []), *contexts]
        return _Mined({**values, "hard_negative_ctxs": contexts}, len(mined))

    def _search(self, question: str) -> Sequence[Hit]:
        depth = max(self._config.rules.max_rank, self._config.distant_supervision or 0)
        if self._reranker is not None:
            depth = self._reranker.depth
        result = self._index.search([question], depth)
        rows, scores = result.rows[0].tolist(), result.scores[0].tolist()
        return [Hit(self._passage(row), score) for row, score in zip(rows, scores, strict=True) if row >= 0]
