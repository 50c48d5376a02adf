"""Pretraining by masked salient spans: retriever and reader learn from plain text (Sachan et al. 2021, arXiv
2101.00408, section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_retrieval.config.checks import Checked
from megatron_retrieval.data.examples.masked_sentences import MaskedSentences, MaskedSentencesConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.answer_matching import AnswerMatcher
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.end_to_end.build import EndToEndRun, run_end_to_end
from megatron_retrieval.recipes.end_to_end.config import EndToEndConfig
from megatron_retrieval.training.run import TrainingRun
from megatron_retrieval.training.tasks.refreshed_recall import EvaluateAtRefresh, IndexRecallTask, ZeroShotConfig
from megatron_retrieval.training.trainer import Callback, Trainer


@dataclass(kw_only=True, frozen=True)
class MssDataConfig(Checked):
    """Masked sentences to learn from, and questions to find passages for meanwhile."""

    sentences: MaskedSentencesConfig
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)


@dataclass(kw_only=True, frozen=True)
class MssPretrainingConfig(EndToEndConfig):
    """Pretrain a retriever and a reader by masked salient spans: recover a name or a date of a sentence with the help
    of passages that do not hold the sentence."""

    data: MssDataConfig


class MssRun(EndToEndRun[MssPretrainingConfig]):
    """Learns from masked sentences."""

    def examples(self) -> MaskedSentences:
        """See EndToEndRun.

        Raises:
            ConfigError: several spans are masked where the reader points to one.
        """
        config = self.config
        if config.data.sentences.masked_spans == "all" and self.reader_kind.needs_passages:
            raise ConfigError(f"--masked-spans all: a {self.reader_kind.name} reader points to one span; give one.")
        return MaskedSentences(
            config.data.sentences,
            self.evidence,
            retriever=self.tokenizer,
            reader=self.reader.vocabulary,
            text_format=self.text_format,
            question_seq_length=self.reader.settings.layout.question_seq_length,
            seed=config.training.seed,
        )

    def callbacks(self, run: TrainingRun) -> list[Callback]:
        """See EndToEndRun."""
        questions = self.config.data.zero_shot.questions()
        if not questions:
            return []
        config, answering = self.config, self.config.answering
        task = IndexRecallTask(
            questions,
            answering.eval_topk,
            self.model.retriever,
            self.search,
            self.evidence,
            self.tokenizer,
            self.text_format,
            AnswerMatcher(answering.matching),
        )
        return [EvaluateAtRefresh(task, config.training.evaluation.eval_interval, run.metrics_log)]


def main(config: MssPretrainingConfig, topology: ProcessTopology) -> None:
    """Train, or embed beside those that train; leaves configuration, metrics and run record in --output-dir."""
    run_end_to_end(build, config, topology)


def build(config: MssPretrainingConfig, topology: ProcessTopology) -> Trainer:
    """Open the spans, build the model, and make the trainer; see `EndToEndRun`."""
    return MssRun(config, topology).trainer()
