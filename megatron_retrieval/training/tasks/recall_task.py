"""Recall during training: questions against evidence that is embedded with the weights of the moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import HELD_OUT
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_sample import EvidenceSample, spread_rows
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.retrieval_results import Retrieved, retrieval_metrics
from megatron_retrieval.evaluation.retriever_task import evaluate_retriever
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StorageDtype
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedder import embed_in_memory
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.retriever import Retriever, tokenize_questions
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.steps.step import evaluation_mode
from megatron_retrieval.types.questions import Question


@dataclass(kw_only=True, frozen=True)
class RecallConfig(Checked):
    """Recall on a question file before, during and after training, every --eval-interval."""

    eval_questions: str | None = field(default=None, metadata=HELD_OUT)
    """Questions: DPR .qa.csv, JSON lines, or DPR biencoder JSON, plain or gzip; default: no recall is measured."""
    eval_evidence: str | None = field(default=None, metadata=HELD_OUT)
    """Folder of the evidence that is searched (build evidence), with the model's vocabulary."""
    eval_max_questions: PositiveInt | None = None
    """Ask only so many questions, at equal distances in the file; default: all."""
    eval_max_passages: PositiveInt | None = None
    """Search only so many passages, at equal distances in the evidence; recall is then higher than over all of it, but
    lacks questions whose answers were left out. Default: all."""
    eval_topk: tuple[PositiveInt, ...] = (1, 5, 20, 100)
    """Depths at which recall is measured."""
    eval_micro_batch_size: PositiveInt = 128
    """Texts encoded at once by each copy of the model while recall is measured."""
    eval_embedding_dtype: StorageDtype = "float16"
    """Type in which passage vectors are kept in memory."""
    eval_embeddings: str | None = field(default=None, metadata=HELD_OUT)
    """Folder of the embeddings of all of --eval-evidence by --pretrained-checkpoint (embed), which
    --freeze-passage-encoder keeps right; default: the passages are embedded for each measurement."""
    matching: AnswerMatchConfig = field(default_factory=AnswerMatchConfig)
    """When a passage holds an answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.eval_questions is None) != (self.eval_evidence is None):
            raise ConfigError("--eval-questions and --eval-evidence belong together: give both, or neither.")
        if self.eval_embeddings is not None and (self.eval_evidence is None or self.eval_max_passages is not None):
            raise ConfigError("--eval-embeddings are of all of --eval-evidence: give it, and no --eval-max-passages.")

    def open(
        self,
        model: DualEncoder,
        text_format: TextFormatConfig,
        tokenizer: Vocabulary,
        embeddings: EmbeddingStore | None = None,
    ) -> RecallTask | None:
        """Read the questions and open the evidence; None where no questions are given.

        Args:
            embeddings: those of --eval-embeddings.

        Raises:
            DataError: a file is missing or malformed.
            MismatchError: the evidence was tokenized with another vocabulary than `tokenizer`'s.
        """
        if self.eval_questions is None or self.eval_evidence is None:
            return None
        evidence = EvidenceStore(self.eval_evidence)
        evidence.require_vocabulary(tokenizer, "the model in training")
        questions = list(read_questions(self.eval_questions))
        if not any(question.answers or question.gold_passage_ids for question in questions):
            problem = "no question has an answer or a gold passage"
            raise DataError(self.eval_questions, problem, hint="Recall needs one of them.")
        chosen = [questions[number] for number in spread_rows(len(questions), self.eval_max_questions)]
        sample = EvidenceSample(evidence, self.eval_max_passages)
        return RecallTask(self, model, text_format, tokenizer, chosen, sample, embeddings)


class RecallTask:
    """Questions and passages, to be put to a model as often as wanted. Nothing is left on disk."""

    name = "recall"

    def __init__(
        self,
        config: RecallConfig,
        model: DualEncoder,
        text_format: TextFormatConfig,
        tokenizer: Vocabulary,
        questions: Sequence[Question],
        evidence: EvidenceSample,
        embeddings: EmbeddingStore | None = None,
    ) -> None:
        self._config, self._model, self._text_format = config, model, text_format
        self._questions, self._evidence, self._embeddings = questions, evidence, embeddings
        self._tokens = tokenize_questions([question.text for question in questions], tokenizer, text_format)

    @property
    def questions(self) -> Sequence[Question]:
        """Those that are asked."""
        return self._questions

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """`retrieval_metrics` of the model as it stands, and `num_passages`; a collective over all ranks.

        Draws no random number and gives the model back in the mode in which it was.
        """
        return self.metrics(self.retrieve(topology))

    def metrics(self, retrieved: Retrieved) -> dict[str, Any]:
        """The same of what was retrieved."""
        metrics = retrieval_metrics(retrieved.ranks, sorted(set(self._config.eval_topk)))
        return {**metrics, "num_passages": len(self._evidence)}

    @torch.no_grad()
    def retrieve(self, topology: ProcessTopology) -> Retrieved:
        """What the model as it stands finds; a collective over all ranks."""
        config = self._config
        with evaluation_mode(self._model):
            return evaluate_retriever(
                self._questions,
                self._tokens,
                self._model.encode_queries,
                Retriever(self._index(topology)),
                self._evidence,
                AnswerMatcher(config.matching),
                topology,
                depth=max(config.eval_topk),
                micro_batch_size=config.eval_micro_batch_size,
            )

    def _index(self, topology: ProcessTopology) -> ShardedIndex:
        """Of the vectors on disk where they are given, else of those that the model makes now."""
        if self._embeddings is not None:
            return ShardedIndex(self._embeddings, topology)
        job = EmbeddingJob(
            evidence=self._evidence,
            encode=self._model.encode_passages,
            text_format=self._text_format,
            embedding_dtype=self._config.eval_embedding_dtype,
            micro_batch_size=self._config.eval_micro_batch_size,
        )
        return embed_in_memory(job, self._model.dimension, topology)
