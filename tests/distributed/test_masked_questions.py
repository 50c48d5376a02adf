"""Questions with gaps: token ids come from the dataset, so masks and sentinels, which no text can hold, reach retriever
and reader, through the loader and the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end_setting import SHAPE, TEXT_FORMAT, WORDS, Setting, write_inputs

from megatron_retrieval.data.examples.batches import BatchSource, Share, batches_in_order
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.layouts.sequences import format_questions
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_sentencepiece import write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep, EndToEndStepConfig
from megatron_retrieval.training.steps.readings import FusionReadings
from megatron_retrieval.training.trainer import reduce_metrics

NUM_QUESTIONS, K = 3, 2
LAYOUT = FusionFormatConfig(question_seq_length=24, reader_seq_length=80)


class MaskedSpans:
    """Passage n's sentence with its second word hidden: the word is the answer, the passage no candidate.

    Args:
        gap: False: the word is left out, and nothing stands in its place.
    """

    def __init__(self, setting: Setting, reader: SentencePieceTokenizer, *, gap: bool) -> None:
        self._setting, self._reader, self._gap = setting, reader, gap

    def __len__(self) -> int:
        return NUM_QUESTIONS

    def batch(self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int, dp_size: int) -> AskedBatch:
        """See BatchSource."""
        share = Share.of(len(indices), dp_rank, dp_size)
        own = list(indices[share.own]) or list(indices[:1])
        retriever = self._setting.tokenizer
        texts = [self._setting.evidence.passage(row).text.split() for row in own]
        sentinels = [[number] for number in self._reader.sentinel_ids[:2]]
        answers = [sentinels[0] + self._reader.encode([words[1]])[0] + sentinels[1] for words in texts]
        targets = Ragged.from_sequences(answers, np.int32)
        queries = [self._with_gap(retriever.encode, words, [retriever.special.mask]) for words in texts]
        questions = [self._with_gap(self._reader.encode, words, sentinels[0]) for words in texts]
        return AskedBatch(
            format_questions(Ragged.from_sequences(queries, np.int32), retriever.special, TEXT_FORMAT.query_seq_length),
            Ragged.from_sequences(questions, np.int32),
            targets,
            tuple(targets.take(np.array([place])) for place in range(len(own))),
            torch.tensor(own)[:, None],
            len(indices),
            is_filler=share.num_real == 0,
        )

    def _with_gap(self, encode: Any, words: list[str], gap: list[int]) -> list[int]:
        before, after = encode([words[0], " ".join(words[2:])])
        return [*before, *(gap if self._gap else []), *after]


def _step(topology: ProcessTopology, folder: str, gap: bool) -> dict[str, Any]:
    """Metrics of a step, the tokens that retriever and reader were given, and the rows that were found."""
    tokenizer = SentencePieceTokenizer(Path(folder) / "spiece.model")
    shape = {name: value for name, value in SHAPE.items() if name not in ("max_position_embeddings", "init_method_std")}
    reader = T5(T5Config(**{**shape, "vocab_size": tokenizer.vocab_size}), topology, seed=2)
    setting = Setting(topology, Path(folder), reader, K)
    texts = RetrievedTexts(setting.evidence, FusionLayout(LAYOUT, tokenizer), tokenizer, max_answer_length=12)
    readings = FusionReadings(FusionReader(reader, FusionEncodeConfig()), texts, topology)
    source: BatchSource[AskedBatch] = MaskedSpans(setting, tokenizer, gap=gap)
    (batch,) = batches_in_order(source, NUM_QUESTIONS, topology.dp_rank, topology.dp_size)()
    config = EndToEndStepConfig(objective="emdr2", micro_batch_size=2)
    step = EndToEndStep(setting.model, readings, setting.search, config, topology, seed=3)
    rows = setting.search.find(batch).rows
    reading = readings.reading(batch, rows)
    metrics = reduce_metrics(step.forward_backward(batch, 0, 1.0), topology)
    evaluated = reduce_metrics(step.evaluate(batch), topology)
    return {
        "queries": batch.retriever_queries.ids,
        "read": reading.texts.ids,
        "labels": reading.labels,
        "rows": rows,
        "mask": setting.tokenizer.special.mask,
        "sentinel": tokenizer.sentinel_ids[0],
        "loss": float(metrics["loss"]),
        "alone": float(evaluated["log_likelihood_alone"]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("masked"), {WORDS[0]: [WORDS[1]]})
    write_sentencepiece(
        folder / "spiece.model", [" ".join(WORDS), "question: title: context:"], model_type="char", vocab_size=30
    )
    return folder


def test_masks_and_sentinels_reach_retriever_and_reader(folder: Path) -> None:
    (asked,) = run_on_ranks(_step, 1, str(folder), True)
    assert ((asked["queries"] == asked["mask"]).sum(1) == 1).all()
    assert ((asked["read"] == asked["sentinel"]).sum(1) == 1).all()
    assert (asked["labels"][:, 0] == asked["sentinel"]).all()
    assert not (asked["rows"] == torch.arange(NUM_QUESTIONS)[:, None]).any()
    (without,) = run_on_ranks(_step, 1, str(folder), False)
    assert asked["alone"] != pytest.approx(without["alone"], rel=1e-3)
    parts = run_on_ranks(_step, 2, str(folder), True)
    assert parts[0]["loss"] == pytest.approx(asked["loss"], rel=1e-5)
