"""One check of `gpu_check.py`: what it finds goes to FOLDER/figures.json, and it fails with a sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import embedding_rate
import gpu_models
import score_attention
import search_gpu
import torch
import torch.distributed as dist
from torch.nn import functional as F

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.index.exact import candidate_filter
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.exact.score_tiles import KeptScores, maxima_kernel
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.parallel.collectives import gather_objects, gather_rows
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.testing.spawn import rank_environment
from megatron_retrieval.testing.tiny import write_tiny_dpr
from megatron_retrieval.utils.files import write_json

ROOT = Path(__file__).parents[2]
Figures = dict[str, Any]
#: the largest difference from the CPU's float32, by its norm; of bf16 the cosine of the gradient is looked at
MOST_ERROR, LEAST_COSINE = 1e-3, 0.98


@dataclass(kw_only=True, frozen=True)
class CheckConfig:
    """Which check, on what."""

    check: str
    """Its name."""
    folder: Path
    """For figures.json, and what the check writes."""
    device: Literal["cuda", "cpu"] = "cuda"
    """What is checked."""
    tiny: bool = False
    """In small."""


def parity(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """Logits, losses and gradients of every paradigm: the CPU's in float32 against the device's in float32 and bf16."""
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu, found, wrong = replace(topology, device=torch.device("cpu")), {}, []
    for name, make in gpu_models.SMALL.items():
        expected = gpu_models.numbers(*make(on_cpu, torch.float32), on_cpu.device)
        for dtype in (torch.float32, torch.bfloat16):
            given = gpu_models.numbers(*make(topology, dtype), topology.device)
            errors = {key: float((given[key] - expected[key]).norm() / expected[key].norm()) for key in given}
            cosine = float(F.cosine_similarity(given["gradient"], expected["gradient"], dim=0))
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            found[label] = {**{f"{key}_error": error for key, error in errors.items()}, "gradient_cosine": cosine}
            is_right = max(errors.values()) <= MOST_ERROR if dtype == torch.float32 else cosine >= LEAST_COSINE
            if not is_right:
                wrong.append(label)
    return _found(wrong, found, "differ from the CPU")


def attention(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """The forms of attention with scores: gradients, time and memory."""
    shape = score_attention.DecoderShapeConfig(bf16=True, hidden_size=64 if config.tiny else 768)
    found = {}
    for num_passages in (2, 3) if config.tiny else (10, 50):
        settings = score_attention.ScoreAttentionBenchmarkConfig(
            shape=shape, num_rounds=2 if config.tiny else 10, passage_tokens=10 if config.tiny else 200
        )
        seconds, peaks = score_attention.measure(settings, num_passages, topology)
        found[f"{num_passages} passages"] = {
            form: {"milliseconds": 1000 * min(seconds[form]), "peak_bytes": peaks[form]} for form in seconds
        }
    return found


def kernel(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """Rows and scores of exact search, with Triton's kernel and without: the CPU's to the bit."""
    num_rows, dimension = (2000, 32) if config.tiny else (200_000, 768)
    random = torch.Generator().manual_seed(0)
    distinct = torch.randn(num_rows // 4, dimension, generator=random)
    vectors, queries = distinct.repeat(4, 1), torch.randn(33, dimension, generator=random)
    hidden = torch.randint(-1, num_rows, (33, 200), generator=random)
    wrong, make_tile = [], candidate_filter.make_tile
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for excluded in (None, hidden):
            expected = FlatIndex(vectors.to(dtype)).search(queries, 20, excluded)
            for name, maker in (("chosen", make_tile), ("torch", KeptScores)):
                candidate_filter.make_tile = maker
                index = FlatIndex(vectors.to(dtype), device=topology.device)
                found = index.search(queries, 20, excluded)
                if not (torch.equal(found.rows, expected.rows) and torch.equal(found.scores, expected.scores)):
                    wrong.append(f"{dtype}, {name}, {'hidden rows' if excluded is not None else 'all rows'}")
    has_triton = importlib.util.find_spec("triton") is not None
    return _found(wrong, {"triton": has_triton and topology.device.type == "cuda"}, "finds other rows")


def nccl(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """Collectives of one process through the library, which the package itself leaves out there."""
    group, ones = topology.world_group, torch.ones(4, device=topology.device)
    dist.barrier()
    dist.all_reduce(ones, group=group)
    dist.broadcast(ones, 0, group=group)
    received, objects = torch.empty_like(ones), [None]
    dist.all_to_all_single(received, ones, group=group)
    dist.all_gather_object(objects, {"rank": topology.rank}, group=group)
    gathered = [gather_objects(1, group), gather_rows(ones, group).tolist()]
    is_right = received.tolist() == [1.0] * 4 and objects == [{"rank": 0}] and gathered == [[1], [1.0] * 4]
    return _found([] if is_right else ["a collective"], {"backend": dist.get_backend(group)}, "returned other values")


def resume(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """A run that is killed and started again has the losses of one that is not, to the bit."""
    data, vocabulary = write_tiny_dpr(config.folder)
    words = (
        "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --max-position-embeddings 32 --no-tensorboard "
        "--retriever-seq-length 32 --query-seq-length 16 --log-interval 1 --global-batch-size 8 --train-iters 40 "
        "--save-interval 10 --eval-interval 1000 --deterministic-mode --dtype auto --seed 5"
    ).split()
    common = [*words, "--device", config.device, "--train-data", str(data), "--vocab-file", str(vocabulary)]
    program = [sys.executable, str(ROOT / "tasks" / "main.py"), "--task", "retriever-finetune", *common]

    def start(name: str) -> tuple[subprocess.Popen[bytes], Path]:
        output, saved = config.folder / name, config.folder / f"{name}-saved"
        process = subprocess.Popen([*program, "--output-dir", output, "--save", saved, "--load", saved])
        return process, output / "metrics.jsonl"

    whole, whole_log = start("whole")
    cut, cut_log = start("cut")
    while cut.poll() is None and len(_losses(cut_log)) < 15:
        time.sleep(0.005)
    cut.kill()
    cut.wait()
    killed_after = len(_losses(cut_log))
    again, _ = start("cut")
    if whole.wait() or again.wait():
        raise MismatchError("a training run failed.")
    expected, found = _losses(whole_log), _losses(cut_log)
    differing = [str(step) for step in expected if expected[step] != found.get(step)]
    return _found(differing, {"killed_after": killed_after, "steps": len(expected)}, "are steps with other losses")


def search(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """Time of exact search of all of Wikipedia's passages, against what memory allows."""
    sizes = {"num_rows": 5000, "num_rows_compared": 5000, "dimension": 32, "num_rounds": 2} if config.tiny else {}
    found: Figures = search_gpu.measure(search_gpu.SearchGpuConfig(**sizes), topology.device)
    return {**found, "triton": topology.device.type == "cuda" and maxima_kernel() is not None}


def embedding(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """Passages embedded a second by a BERT-base."""
    sizes: Figures = {"num_passages": 32768, "encode": EncodeConfig(dtype="auto", micro_batch_size=256)}
    if config.tiny:
        shape = BertConfig(num_layers=1, hidden_size=32, num_attention_heads=2)
        sizes = {"num_passages": 64, "num_tokens": 16, "shape": shape, "matrix_sizes": (64,), "num_rounds": 2}
    return embedding_rate.measure(embedding_rate.EmbeddingRateConfig(**sizes), topology)


def _timed_step(run: gpu_models.Timed, config: CheckConfig, topology: ProcessTopology) -> Figures:
    """A whole step of the trainer: its time and model FLOPs utilisation, against the best matrix product here."""
    trainer, batch = gpu_models.trainer_of(run, topology)
    seconds = []
    for _ in range(3 if config.tiny else 8):
        started = time.perf_counter()
        report = trainer._step(batch, started)
        if topology.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    rate = embedding_rate.matrix_rate((64,) if config.tiny else None, torch.bfloat16, topology.device)
    best = sorted(seconds)[len(seconds) // 2]
    found = {"seconds": best, "first_seconds": seconds[0], "loss": report.metrics["loss"]}
    if topology.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    mfu = run.operations / best / rate
    return {**found, "operations": run.operations, "matrix_operations_per_second": rate, "mfu": mfu}


def dpr_step(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """DPR: BERT-base, 128 questions with a hard negative each."""
    return _timed_step(gpu_models.dpr(topology, tiny=config.tiny), config, topology)


def t5_step(config: CheckConfig, topology: ProcessTopology) -> Figures:
    """A fusion reader: T5-base, 50 passages to a question."""
    return _timed_step(gpu_models.fusion(topology, tiny=config.tiny), config, topology)


CHECKS: dict[str, Callable[[CheckConfig, ProcessTopology], Figures]] = {
    check.__name__: check for check in (parity, attention, kernel, nccl, resume, search, embedding, dpr_step, t5_step)
}


def main(config: CheckConfig) -> None:
    if config.check == "nccl":  # as a rank of torchrun's, whose store another process keeps
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.environ.update(rank_environment(0, 1, store.port))
    with process_topology(ParallelConfig(device=config.device)) as topology:
        figures = CHECKS[config.check](config, topology)
    write_json(config.folder / "figures.json", figures)
    if "failure" in figures:
        raise MismatchError(figures["failure"])


def _found(wrong: list[str], figures: Figures, what: str) -> Figures:
    """The figures, with a sentence under `failure` where something is wrong."""
    return {**figures, "failure": f"{'; '.join(wrong)} {what}."} if wrong else figures


def _losses(log: Path) -> dict[int, float]:
    """By iteration; of one that was repeated, the last."""
    with contextlib.suppress(FileNotFoundError):
        records = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return {record["iteration"]: record["loss"] for record in records if "loss" in record}
    return {}


if __name__ == "__main__":
    main(parse_config(CheckConfig, sys.argv[1:]))
