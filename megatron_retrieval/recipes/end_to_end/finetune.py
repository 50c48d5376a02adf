"""End-to-end training from questions and answers alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from megatron_retrieval.data.examples.batches import BatchSource
from megatron_retrieval.data.examples.open_questions import AskedBatch, AskedDataConfig, AskedQuestions
from megatron_retrieval.data.stores.question_writer import QuestionSource, write_question_store
from megatron_retrieval.data.stores.questions import QuestionStore
from megatron_retrieval.parallel.collectives import on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.end_to_end.build import EndToEndRun, run_end_to_end
from megatron_retrieval.recipes.end_to_end.config import EndToEndFinetuneConfig
from megatron_retrieval.training.callbacks import MeasuredTask
from megatron_retrieval.training.steps.memoised_readings import ReadingMemory
from megatron_retrieval.training.tasks.end_to_end_evaluation import RetrievedPassagesTask
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.utils.late_files import seen_late


class FinetuneRun(EndToEndRun[EndToEndFinetuneConfig]):
    """Learns from questions and answers."""

    def examples(self) -> AskedQuestions:
        """See EndToEndRun."""
        return self._questions("train", self.config.data.train)

    def held_out(self) -> tuple[BatchSource[AskedBatch] | None, list[MeasuredTask]]:
        """See EndToEndRun."""
        if (data := self.config.data.held_out()) is None:
            return None, []
        held_out = self._questions("valid", data)
        return held_out, [self._task(held_out)]

    def _questions(self, name: str, data: AskedDataConfig) -> AskedQuestions:
        """The questions, in a store in the output folder that the first rank writes."""
        folder = Path(self.config.training.log.output_dir) / "questions" / name
        source = QuestionSource(
            files=data.train_data, asked=data.asked, retriever=self.tokenizer, reader=self.reader.vocabulary
        )
        on_first_rank(partial(write_question_store, folder, source), self.topology.world_group)
        return AskedQuestions(
            seen_late(lambda: QuestionStore(folder)),
            self.text_format,
            self.tokenizer,
            seed=self.config.training.seed,
            excluded_from=self.evidence if data.exclude_gold_passages else None,
        )

    def _task(self, held_out: AskedQuestions) -> RetrievedPassagesTask:
        questions = [held_out.store.question(row) for row in range(len(held_out))]
        return RetrievedPassagesTask(
            self.config.answering,
            questions,
            held_out.queries(np.arange(len(held_out))),
            self.model,
            self.search,
            self.evidence,
            self.answerer,
        )


def main(config: EndToEndFinetuneConfig, topology: ProcessTopology) -> None:
    """Train, or embed beside those that train; leaves configuration, metrics and run record in --output-dir."""
    run_end_to_end(build, config, topology)


def build(config: EndToEndFinetuneConfig, topology: ProcessTopology, memory: ReadingMemory | None = None) -> Trainer:
    """Read the data, build the model, and make the trainer; see `EndToEndRun`."""
    return FinetuneRun(config, topology).trainer(memory)
