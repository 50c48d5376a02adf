"""What runs on a GPU, on an emulated one: nothing mixes devices, results are the CPU's, and the host seldom waits."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import test_end_to_end_extractive as extractive_setting
import test_end_to_end_step as fusion_setting
import test_fusion_reader as fusion
import torch
import torch.distributed as dist
from emulated_cuda import emulated_cuda
from end_to_end_setting import write_inputs
from paradigms import Paradigm, paradigms

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.models import attention
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.encoded_sources import EncodedSources
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.determinism import deterministic_algorithms
from megatron_retrieval.parallel.megatron_compat import seed_dropout
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import encode_sequences
from megatron_retrieval.testing import refreshed_run
from megatron_retrieval.testing.refreshed_run import RefreshedRunConfig
from megatron_retrieval.testing.runs import curve, rewind
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import (
    random_texts,
    tiny_dual_encoder_config,
    write_tiny_evidence,
)
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer, reduce_metrics

#: the most waits of a step: the metrics, the norm of the gradient, the stop signal of two ranks; fp16 has a loss scale
MOST_WAITS, MOST_WAITS_FP16 = 3, 6
#: with a search, whose survivors have a number that only the device knows; it does not depend on how many are asked
MOST_WAITS_END_TO_END = 40
#: what two ranks do: shares of a batch, and parts of a model, where no other paradigm does anything else
SHARED = ["contrastive, fp16", "masked LM", "T5", "fusion, feature", "extractive", "emdr2", "extractive end to end"]
CUT = ["contrastive", "fusion, feature", "causal", "joint-topk"]


def _trainer(topology: ProcessTopology, paradigm: Paradigm, precision: PrecisionConfig) -> Trainer:
    model, step, batch = paradigm
    parallel = DataParallelModel(model, topology)
    return Trainer(
        model=parallel,
        step=step,
        optimizer=Optimizer(parallel, OptimizerConfig(), precision, topology),
        batches=lambda first: iter([batch]),
        learning_rate=lambda iteration: 1e-3,
        train_iters=1,
        topology=topology,
        callbacks=[_Reports()],
    )


class _Reports(Callback):
    """Keeps the last report."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        trainer.report = report  # type: ignore[attr-defined]


def _numbers(trainer: Trainer, batch: Any) -> dict[str, float]:
    """What the step reported, and the loss after it."""
    evaluated = reduce_metrics(trainer.step.evaluate(batch), trainer.topology)["loss"]
    reported: dict[str, float] = trainer.report.metrics  # type: ignore[attr-defined]
    return {**{key: value for key, value in reported.items() if "seconds" not in key}, "evaluated": evaluated}


def _on_cpu(topology: ProcessTopology, folder: str) -> dict[str, Any]:
    """What every step reports there, with the form of attention that a GPU takes: where rounding decides between equal
    tokens, the other form counts other ones."""
    found = {}
    with mock.patch.multiple(attention, CPU_PLAIN_KEYS=0, CPU_PLAIN_KEYS_FLOAT32=0):
        for name, (make, precision) in paradigms(folder).items():
            paradigm = make(topology)
            trainer = _trainer(topology, paradigm, precision)
            trainer.fit()
            found[name] = _numbers(trainer, paradigm[2])
    return found


def _emulated_steps(topology: ProcessTopology, folder: str, names: Sequence[str]) -> dict[str, Any]:
    """What every step reports, and what it waited for."""
    found, made = {}, paradigms(folder)
    for name in names:
        make, precision = made[name]
        with emulated_cuda(topology) as (emulated, waits):
            paradigm = make(emulated)
            trainer = _trainer(emulated, paradigm, precision)
            waits.clear()
            trainer.fit()
            counted = dict(waits)
            found[name] = {"numbers": _numbers(trainer, paradigm[2]), "waits": counted}
    return found


def _deterministic_steps(topology: ProcessTopology, folder: str) -> dict[str, Any]:
    """Nothing adds in any order, though torch itself would not refuse it."""
    with deterministic_algorithms(True):
        return _emulated_steps(topology, folder, ["contrastive, bf16", "extractive", "joint-topk"])


class _Seeded(Callback):
    """Dropout that depends on the iteration alone."""

    def on_start(self, trainer: Trainer) -> None:
        seed_dropout(trainer.iteration, trainer.topology.tp_rank)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self.on_start(trainer)


def _refreshed(topology: ProcessTopology, evidence: str, output: str) -> tuple[list[float], list[float]]:
    """Losses of a run whose index is refreshed in place, and of its second half, resumed."""
    words = "--device cpu --global-batch-size 4 --no-tensorboard --log-interval 1 --lr 1e-2 --train-iters 4".split()
    words += ["--save", f"{output}/saved", "--save-interval", "2", "--index-refresh-interval", "2", "--bf16"]
    words += ["--evidence", evidence, "--index-dir", f"{output}/index"]
    further = {"whole": [], "resumed": ["--load", f"{output}/saved"]}
    for name, more in further.items():
        with emulated_cuda(topology) as (emulated, _):
            config = parse_config(RefreshedRunConfig, [*words, "--output-dir", f"{output}/{name}", *more])
            refreshed_run.build(config, emulated, more=[_Seeded()]).trainer.fit()
        topology.barrier()
        if topology.is_main:
            rewind(Path(output) / "saved", 2)
        topology.barrier()
    return curve(Path(output) / "whole"), curve(Path(output) / "resumed")


def _search(topology: ProcessTopology) -> list[bool]:
    """Whether rows and scores are the CPU's to the bit, of vectors of each type, with hidden rows."""
    random = torch.Generator().manual_seed(0)
    vectors, queries = torch.randn(700, 24, generator=random), torch.randn(5, 24, generator=random)
    hidden = torch.randint(-1, 700, (5, 30), generator=random)
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        expected = FlatIndex(vectors.to(dtype)).search(queries, 9, hidden)
        with emulated_cuda(topology) as (emulated, _):
            index = FlatIndex(vectors.to(dtype), device=emulated.device)
            result = index.search(queries.to(emulated.device), 9, hidden.to(emulated.device))
            assert result.rows.device == emulated.device
            found.append(torch.equal(result.rows.cpu(), expected.rows))
            found.append(torch.equal(result.scores.cpu(), expected.scores))
    return found


def _embedding_waits(topology: ProcessTopology) -> list[str]:
    """What embedding waits for, batch by batch; the vectors are the CPU's."""
    texts = random_texts(20, 14, seed=2)
    with emulated_cuda(topology) as (emulated, waits):
        model = DualEncoder(tiny_dual_encoder_config(), emulated, seed=3).eval()
        waits.clear()
        found = encode_sequences(texts, model.encode_passages, 4, emulated.device)
        counted = [line.split()[0] for line in waits.elements()]
    model = DualEncoder(tiny_dual_encoder_config(), topology, seed=3).eval()
    torch.testing.assert_close(found, encode_sequences(texts, model.encode_passages, 4, topology.device))
    return counted


def _answers(topology: ProcessTopology) -> list[list[list[int]]]:
    """Answers by beam search, on the CPU and emulated."""
    config, found = GenerationConfig(num_beams=2, max_answer_length=5), []

    def write(topology: ProcessTopology) -> None:
        reader, batch = fusion._reader(topology, fusion.SHAPES["t5"]).eval(), fusion._whole_batch().to(topology.device)
        with torch.no_grad():
            memory = reader.encode(batch.texts, batch.is_real)
        found.append(generate(EncodedSources(reader.model, memory), config, topology.groups.tp).best.ids.tolist())

    write(topology)
    with emulated_cuda(topology) as (emulated, _):
        write(emulated)
    return found


def _emulated(topology: ProcessTopology, folder: str, names: list[str]) -> dict[str, Any]:
    found = {"steps": _emulated_steps(topology, folder, names), "answers": _answers(topology)}
    if topology.dp_size > 1:
        found["refreshed"] = _refreshed(topology, f"{folder}/evidence", folder)
    return found


def _alone(topology: ProcessTopology, folder: str) -> dict[str, Any]:
    """One rank; what others are compared with as well."""
    names = list(paradigms(folder))
    return {
        "cpu": _on_cpu(topology, folder),
        "search": _search(topology),
        "embedding": _embedding_waits(topology),
        "deterministic": _deterministic_steps(topology, folder),
        **_emulated(topology, folder, names),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulated")
    words, numbers = fusion_setting.WORDS, range(fusion_setting.NUM_QUESTIONS)
    asked = {f"{words[n * 6]} {words[n * 3 + 1]}": [f"{words[n * 5 + 2]} {words[n + 9]}"] for n in numbers}
    for name, questions in (("writing", asked), ("extractive", extractive_setting.ANSWERS)):
        (folder / name).mkdir()
        write_inputs(folder / name, questions)
    write_tiny_evidence(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    (found,) = run_on_ranks(_alone, 1, str(folder))
    return found


def _require_equal_numbers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, step in found["steps"].items():
        tolerance = 0.05 if "16" in name else 1e-4
        for key, value in expected[name].items():
            assert step["numbers"][key] == pytest.approx(value, rel=tolerance, abs=1e-5), (name, key)


def _require_few_waits(found: dict[str, Any]) -> None:
    for name, step in found["steps"].items():
        most = MOST_WAITS_FP16 if "fp16" in name else MOST_WAITS
        if name in OBJECTIVES or name == "extractive end to end":
            most = MOST_WAITS_END_TO_END
        assert sum(step["waits"].values()) <= most, (name, step["waits"])


def test_one_rank(alone: dict[str, Any]) -> None:
    """Its numbers are the CPU's."""
    _require_equal_numbers(alone, alone["cpu"])
    _require_equal_numbers({"steps": alone["deterministic"]}, alone["cpu"])
    _require_few_waits(alone)
    assert all(alone["search"])
    on_cpu, emulated = alone["answers"]
    assert on_cpu == emulated
    assert alone["embedding"] == ["event"] * 5


@pytest.mark.parametrize(("tp_size", "names"), [(1, SHARED), (2, CUT)])
def test_two_ranks(folder: Path, alone: dict[str, Any], tp_size: int, names: list[str]) -> None:
    for found in run_on_ranks(_emulated, 2, str(folder), names, tensor_model_parallel_size=tp_size):
        _require_equal_numbers(found, alone["cpu"])
        _require_few_waits(found)
        assert found["answers"] == alone["answers"]
        if tp_size == 1:
            whole, resumed = found["refreshed"]
            assert len(whole) == 4
            assert resumed == whole[2:]


def _refused(topology: ProcessTopology) -> list[str]:
    """The emulation itself: what each of these ends with."""
    with emulated_cuda(topology) as (emulated, waits):
        ones = torch.ones(3, device=emulated.device)
        late = ones.to("cpu", non_blocking=True)
        assert late.isnan().all()
        trials = {
            "mixed": lambda: ones + torch.ones(3),
            "numpy": lambda: ones.numpy(),
            "collective": lambda: dist.all_reduce(torch.ones(3)),
            "object": lambda: gather_objects({"loss": ones}, topology.world_group),
            "indexed": lambda: torch.ones(3)[ones.long()],
        }
        found = []
        for name, trial in trials.items():
            with contextlib.suppress(RuntimeError, TypeError):
                trial()
                continue
            found.append(name)
        waits.clear()
        assert ones.sum().item() == 3
        assert late.tolist() == [1, 1, 1]
        return [*found, *(line.split()[0] for line in waits)]


def test_the_emulation_refuses_and_counts() -> None:
    wanted = ["mixed", "numpy", "collective", "object", "indexed", "_local_scalar_dense"]
    assert run_on_ranks(_refused, 2) == [wanted, wanted]
