"""Pretraining by masked salient spans: retriever and reader learn from plain text (Sachan et al. 2021, arXiv
2101.00408, section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from megatron_retrieval.config.checks import Checked
from megatron_retrieval.data.examples.masked_sentences import MaskedSentences, MaskedSentencesConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.answer_matching import AnswerMatcher
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.end_to_end.build import EndToEndRun
from megatron_retrieval.recipes.end_to_end.config import EndToEndConfig
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.run import TrainingRun
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep
from megatron_retrieval.training.steps.memoised_readings import ReadingMemory
from megatron_retrieval.training.tasks.refreshed_recall import EvaluateAtRefresh, IndexRecallTask, ZeroShotConfig
from megatron_retrieval.training.tasks.watching import WatchConfig, WatchSentences, WatchTask, WritePage, in_vocabulary
from megatron_retrieval.training.trainer import Callback, Trainer
from megatron_retrieval.types.questions import Question


@dataclass(kw_only=True, frozen=True)
class MssDataConfig(Checked):
    """Masked sentences to learn from, and questions to find passages for meanwhile."""

    sentences: MaskedSentencesConfig
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


@dataclass(kw_only=True, frozen=True)
class MssPretrainingConfig(EndToEndConfig):
    """Pretrain a retriever and a reader by masked salient spans: recover a name or a date of a sentence with the help
    of passages that do not hold the sentence."""

    data: MssDataConfig


class MssRun(EndToEndRun[MssPretrainingConfig]):
    """Learns from masked sentences.

    Args:
        write_page: of sentences in words; None: there is no page.
    """

    #: what makes the examples
    sentences_class: ClassVar[type[MaskedSentences]] = MaskedSentences

    def __init__(
        self, config: MssPretrainingConfig, topology: ProcessTopology, write_page: WritePage | None = None
    ) -> None:
        super().__init__(config, topology)
        self._write_page = write_page

    @cached_property
    def _sentences(self) -> MaskedSentences:
        config = self.config
        if config.data.sentences.masked_spans == "all" and self.reader_kind.needs_passages:
            raise ConfigError(f"--masked-spans all: a {self.reader_kind.name} reader points to one span; give one.")
        return self.sentences_class(
            config.data.sentences,
            self.evidence,
            retriever=self.tokenizer,
            reader=self.reader.vocabulary,
            text_format=self.text_format,
            question_seq_length=self.reader.settings.layout.question_seq_length,
            seed=config.training.seed,
        )

    def examples(self) -> MaskedSentences:
        """See EndToEndRun.

        Raises:
            ConfigError: several spans are masked where the reader points to one.
        """
        return self._sentences

    def callbacks(self, run: TrainingRun, step: EndToEndStep) -> list[Callback]:
        """See EndToEndRun."""
        interval, data = self.config.training.evaluation.eval_interval, self.config.data
        callbacks: list[Callback] = []
        if questions := data.zero_shot.questions():
            callbacks.append(EvaluateAtRefresh(self._recall(questions), self.search, interval, run.metrics_log))
        if self.num_watched:
            watch = self._watch(step)
            callbacks.append(WatchSentences(watch, self.search, interval, run.metrics_log, self._write_page))
        return callbacks

    @property
    def num_watched(self) -> int:
        """Sentences that are looked at in training."""
        return self.config.data.watch.watch_sentences

    def _recall(self, questions: list[Question]) -> IndexRecallTask:
        answering = self.config.answering
        return IndexRecallTask(
            questions,
            answering.eval_topk,
            self.model.retriever,
            self.search,
            self.evidence,
            self.tokenizer,
            self.text_format,
            AnswerMatcher(answering.matching),
        )

    def _watch(self, step: EndToEndStep) -> WatchTask:
        def answerer(vocabulary: Vocabulary) -> Reader:
            return in_vocabulary(self.reader, vocabulary).answerer(self.passage_scores())

        return WatchTask(
            self.config.data.watch,
            self._sentences,
            step,
            self.evidence,
            answerer,
            self.reader.vocabulary,
        )


def build(
    config: MssPretrainingConfig,
    topology: ProcessTopology,
    write_page: WritePage | None = None,
    memory: ReadingMemory | None = None,
) -> Trainer:
    """Open the spans, build the model, and make the trainer; see `MssRun`."""
    return MssRun(config, topology, write_page).trainer(memory)
