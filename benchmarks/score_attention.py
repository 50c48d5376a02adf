"""Time and memory of a decoder that reads passages with their scores, in each form of attention with scores.

A step is forwards and backwards, with gradients of the encoder's states, the scores and the weights. The forms take
turns, and a ratio is that of neighbours. On CPU the seconds are those that the process spends there. Memory is that of
tensors; what the CPU's libraries keep for themselves is not in it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from megatron_retrieval.config.checks import Bounds, Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.score_attention import ScoreForm, choose_form
from megatron_retrieval.models.t5 import T5, T5Decoder
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.reports.tables import text_table

FORMS: tuple[ScoreForm, ...] = ("mask", "explicit", "feature")
MIB = 2**20


@dataclass(kw_only=True, frozen=True)
class DecoderShapeConfig:
    """Shape of the random T5 decoder; the defaults are a layer of T5 1.0, small."""

    num_layers: int = 1
    """Transformer layers."""
    hidden_size: int = 512
    """Width of the hidden states."""
    num_attention_heads: int = 8
    """Attention heads."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped; above 0 no fused kernel of the CPU computes attention."""
    bf16: bool = False
    """Compute in bfloat16."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return torch.bfloat16 if self.bf16 else torch.float32


NumPassages = Annotated[int, Bounds(least=2, why="the score of a passage alone changes nothing")]


@dataclass(kw_only=True, frozen=True)
class ScoreAttentionBenchmarkConfig(Checked):
    """Compare the forms of attention with scores of passages by time and memory of training."""

    shape: DecoderShapeConfig = field(default_factory=DecoderShapeConfig)
    """The decoder."""
    num_passages: tuple[NumPassages, ...] = (5, 20, 50, 100)
    """Passages to a question, several numbers one after the other."""
    num_questions: PositiveInt = 1
    """Questions of a step."""
    passage_tokens: PositiveInt = 200
    """Tokens of a passage."""
    answer_tokens: PositiveInt = 32
    """Tokens of an answer."""
    num_rounds: PositiveInt = 5
    """Steps of each form that are timed."""
    num_threads: int = 1
    """Threads, on CPU."""
    device: str | None = None
    """cpu or cuda; default: cuda where it is available."""


@dataclass(frozen=True)
class Step:
    """A decoder and what it reads.

    Attributes:
        ids: [B, L].
        states: [B, S, D], a leaf.
        scores: [B, K] float32, a leaf.
    """

    decoder: T5Decoder
    ids: Tensor
    states: Tensor
    scores: Tensor

    def forget_gradients(self) -> None:
        self.scores.grad = self.states.grad = None

    def run(self, form: ScoreForm) -> Tensor:
        """Forwards and backwards; returns the gradient of the scores."""
        self.forget_gradients()
        passage_tokens = self.states.size(1) // self.scores.size(1)
        bias = self.scores.repeat_interleave(passage_tokens, 1)[:, None, None]
        self.decoder(self.ids, EncodedMemory(self.states, bias, form)).float().logsumexp(2).sum().backward()
        assert self.scores.grad is not None
        return self.scores.grad


def main(config: ScoreAttentionBenchmarkConfig) -> None:
    torch.set_num_threads(config.num_threads)
    rows = []
    with process_topology(ParallelConfig(device=config.device)) as topology:
        for num_passages in config.num_passages:
            seconds, peaks = measure(config, num_passages, topology)
            rows += [_row(num_passages, form, seconds, peaks) for form in FORMS]
        shape = config.shape
        width = shape.hidden_size // shape.num_attention_heads
        form = choose_form("auto", topology.device, shape.dtype, width)
    header = ["passages, form", "ms, median", "ratio", "rounds", "peak MiB", "ratio"]
    sys.stdout.write(f"{text_table(header, rows)}\n--score-attention auto takes {form} here\n")


def measure(
    config: ScoreAttentionBenchmarkConfig, num_passages: int, topology: ProcessTopology
) -> tuple[dict[ScoreForm, list[float]], dict[ScoreForm, int]]:
    """Seconds of each round and the peak of memory in bytes, by form.

    Raises:
        MismatchError: a form gives other gradients than the plain steps.
    """
    step = _step(config, num_passages, topology)
    _require_equal(step)
    seconds = _seconds(step, config.num_rounds, topology.device)
    return seconds, {form: _peak_bytes(step, form, topology.device) for form in FORMS}


def _step(config: ScoreAttentionBenchmarkConfig, num_passages: int, topology: ProcessTopology) -> Step:
    shape, random = config.shape, torch.Generator().manual_seed(0)
    model_config = T5Config(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        ffn_hidden_size=4 * shape.hidden_size,
        vocab_size=128,
        hidden_dropout=0.0,
        attention_dropout=shape.attention_dropout,
    )
    model = T5(model_config, topology, shape.dtype)
    size = (config.num_questions, num_passages * config.passage_tokens, shape.hidden_size)
    states = torch.randn(size, generator=random).to(topology.device, shape.dtype)
    scores = torch.randn(config.num_questions, num_passages, generator=random).log_softmax(1).to(topology.device)
    ids = torch.randint(2, 128, (config.num_questions, config.answer_tokens), generator=random).to(topology.device)
    return Step(model.decoder, ids, states.requires_grad_(), scores.requires_grad_())


def _require_equal(step: Step) -> None:
    """Raises MismatchError: a form gives the scores another gradient than the plain steps do."""
    step.decoder.eval()
    expected = step.run("explicit")
    tolerance = 1e-3 if step.states.dtype == torch.float32 else 0.1
    for form in FORMS:
        error = ((step.run(form) - expected).norm() / expected.norm()).item()
        if not error < tolerance:
            raise MismatchError(f"the form {form} gives gradients that differ by {error:.1e}; speeds mean nothing.")
    step.decoder.train()


def _seconds(step: Step, num_rounds: int, device: torch.device) -> dict[ScoreForm, list[float]]:
    """What a step took in every round."""
    taken: dict[ScoreForm, list[float]] = {form: [] for form in FORMS}
    for form in FORMS:
        step.run(form)  # warms up
    for _ in range(num_rounds):
        for form in FORMS:
            started = _clock(device)
            step.run(form)
            taken[form].append(_clock(device) - started)
    return taken


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(step: Step, form: ScoreForm, device: torch.device) -> int:
    """The most that tensors take during a step, beyond those that were there before."""
    step.forget_gradients()
    if device.type == "cpu":
        return _cpu_peak_bytes(step, form)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    step.run(form)
    peak: int = torch.cuda.max_memory_allocated(device) - held
    return peak


def _cpu_peak_bytes(step: Step, form: ScoreForm) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.run(form)
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in changes))


def _row(
    num_passages: int, form: ScoreForm, seconds: dict[ScoreForm, list[float]], peaks: dict[ScoreForm, int]
) -> list[str]:
    """Ratios are to the mask form: below 1 is faster, or less."""
    ratios = [own / mask for own, mask in zip(seconds[form], seconds["mask"], strict=True)]
    return [
        f"{num_passages}, {form}",
        f"{1000 * statistics.median(seconds[form]):.1f}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{peaks[form] / MIB:.0f}",
        f"{peaks[form] / peaks['mask']:.2f}",
    ]


if __name__ == "__main__":
    run_program(ScoreAttentionBenchmarkConfig, main)
