"""A frozen reader reads each passage once; a retriever learns the same from what is remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from end_to_end_setting import SHAPE, Setting, write_inputs
from torch import Tensor

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.end_to_end import FreezeConfig
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.end_to_end.config import EndToEndFinetuneConfig
from megatron_retrieval.recipes.end_to_end.finetune import FinetuneRun, build
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_starts import write_starts
from megatron_retrieval.training.steps import memoised_readings
from megatron_retrieval.training.steps.memoised_readings import MemoisedReadings, ReadingMemory
from megatron_retrieval.training.steps.readings import FusionReading, FusionReadings
from megatron_retrieval.utils import stopwatch

QUESTIONS = {f"w{n * 6} w{n * 3 + 1}": [f"w{n * 5 + 2}", "w1 w2 w3"] for n in range(5)}


class _Counted(FusionReadings):
    """Counts what is read."""

    num_read = 0

    def reading(self, batch: AskedBatch, rows: Tensor) -> FusionReading:
        reading = super().reading(batch, rows)
        side = self

        class _Counting(FusionReading):
            def each(self) -> Tensor:
                side.num_read += int(self.has_text.sum())
                return super().each()

            def each_token(self) -> Tensor:
                side.num_read += int(self.has_text.sum())
                return super().each_token()

        return _Counting(**vars(reading))


def _setting(topology: ProcessTopology, folder: str) -> tuple[Setting, _Counted]:
    reader = BertSeq2Seq(BertSeq2SeqConfig(**SHAPE), topology, start_id=2, end_id=3, seed=2)
    setting = Setting(topology, Path(folder), reader, 3, FreezeConfig(freeze_reader=True), null_passage=True)
    layout = FusionLayout(FusionFormatConfig(question_seq_length=8, reader_seq_length=24), setting.tokenizer)
    texts = RetrievedTexts(setting.evidence, layout, setting.tokenizer, max_answer_length=8)
    return setting, _Counted(FusionReader(reader), texts, topology)


def _steps(topology: ProcessTopology, folder: str) -> list[dict[str, Any]]:
    """Of both objectives: a step as it is, and twice from memory."""
    results = []
    for objective in ("individual-topk", "rag-token"):
        setting, plain = _setting(topology, folder)
        fresh = setting.step(plain, objective)
        setting, counted = _setting(topology, folder)
        remembering = MemoisedReadings(counted)
        first, num_first = setting.step(remembering, objective), counted.num_read
        again = setting.step(remembering, objective)
        assert first["metrics"]["num_passages_asked"] == first["metrics"]["num_passages_read"] == num_first
        assert again["metrics"]["num_passages_read"] == 0
        # the training step and the evaluation read the same
        assert plain.num_read == 2 * num_first > 0
        assert counted.num_read == num_first
        with patch.object(memoised_readings, "MOST_REMEMBERED", num_first):  # full: what is asked for is read anew
            assert setting.step(remembering, objective)["metrics"]["num_passages_read"] == num_first
        results += [fresh, first, again]
    return results


def test_what_is_remembered_is_what_would_be_read(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path, QUESTIONS)
    (results,) = run_on_ranks(_steps, 1, str(folder))
    for fresh, *remembered in (results[:3], results[3:]):
        assert any(gradient.abs().max() > 0 for gradient in fresh["gradients"].values())
        for found in remembered:
            torch.testing.assert_close(found["gradients"], fresh["gradients"])
            for name in ("loss", "log_likelihood"):
                torch.testing.assert_close(found["metrics"][name], fresh["metrics"][name])
                torch.testing.assert_close(found["evaluated"][name], fresh["evaluated"][name])


def _timed_step(topology: ProcessTopology, folder: str) -> tuple[dict[str, float], int]:
    """A step on a clock that moves only where a gradient arrives at the retriever; and how often it did."""
    setting, plain = _setting(topology, folder)
    arrived: list[int] = []
    for parameter in setting.model.retriever.parameters():
        parameter.register_hook(lambda gradient: arrived.append(1))
    with patch.object(stopwatch.time, "perf_counter", lambda: float(len(arrived))):
        metrics = setting.step(plain, "individual-topk")["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith("seconds_")}, len(arrived)


def test_the_gradient_of_the_retriever_takes_no_time_of_reading(tmp_path: Path) -> None:
    ((seconds, num_arrived),) = run_on_ranks(_timed_step, 1, str(write_inputs(tmp_path, QUESTIONS)))
    assert seconds == {"seconds_searching": 0, "seconds_reading": 0, "seconds_encoding": num_arrived}
    assert num_arrived > 0


#: two steps in which only the encoder of questions learns
FROZEN = (
    "--train-iters 2 --global-batch-size 4 --num-passages 4 --max-answer-length 4 --objective rag-token "
    "--freeze-reader --freeze-passage-encoder --separate-encoders --no-tensorboard "
    "--log-interval 1 --embedding-dtype float32"
).split()


def _config(folder: Path, run: str, *words: str) -> EndToEndFinetuneConfig:
    places = [f"--{name}={folder / name}" for name in ("retriever", "evidence")]
    places += [f"--train-data={folder / 'biencoder.json'}", f"--reader={folder / 'fusion'}"]
    return parse_config(EndToEndFinetuneConfig, [*places, *FROZEN, f"--output-dir={folder / run}", *words])


def _runs(topology: ProcessTopology, folder: str) -> list[list[dict[str, float]]]:
    """The steps of two runs with one memory, and of one without."""
    memory, found = ReadingMemory(), []
    for run, of_before in (("first", memory), ("second", memory), ("alone", None)):
        build(_config(Path(folder), run, f"--lr={1e-3 if run == 'first' else 1e-4}"), topology, of_before).fit()
        lines = (Path(folder) / run / "metrics.jsonl").read_text().splitlines()
        found.append([line for line in map(json.loads, lines) if "loss" in line])
    return found


@pytest.mark.parametrize("tp_size", [1, 2])
def test_a_second_run_reads_only_what_the_first_has_not_read(tmp_path: Path, tp_size: int) -> None:
    folder = str(write_starts(tmp_path))
    first, second, alone = run_on_ranks(_runs, tp_size, folder, tensor_model_parallel_size=tp_size)[0]
    for steps in (first, second, alone):
        assert all(step["num_passages_asked"] == 16 for step in steps)
    assert all(step["num_passages_read"] == 16 for step in (first[0], *alone))
    assert second[0]["num_passages_read"] == 0
    assert [step["loss"] for step in second] == pytest.approx([step["loss"] for step in alone], rel=1e-5)


def _readers(topology: ProcessTopology, folder: str) -> tuple[list[object], list[object]]:
    """Identities of one reader in two runs, and of others."""
    words = ((), ("--reader-seq-length=24",), ("--max-answer-length=3",), ("--objective=distillation",))
    others = []
    for further in words:
        run = FinetuneRun(_config(Path(folder), "run", *further), topology)
        others.append(run.reader_identity())
    with torch.no_grad():
        next(run.reader.model.parameters()).flatten()[0] += 1e-3
    same = FinetuneRun(_config(Path(folder), "other", "--lr=0.5"), topology).reader_identity()
    return [others[0], same], [*others, run.reader_identity()]


def test_a_memory_is_of_one_reader(tmp_path: Path) -> None:
    ((same, others),) = run_on_ranks(_readers, 1, str(write_starts(tmp_path)))
    assert same[0] == same[1]
    assert len(set(others)) == len(others)
    memory = ReadingMemory()
    memory.of(same[0])["each"][b"question", 0] = torch.ones(1)
    assert memory.of(same[1])["each"]
    assert not memory.of(others[1])["each"]
    assert not memory.of(same[0])["each"]
