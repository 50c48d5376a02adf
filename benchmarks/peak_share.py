"""The share of this machine's matrix rate and memory bandwidth that embedding, training and search reach, and the rest.

Peaks are measured beside the work: the best of some square products in float32, and reading memory that no cache holds.
An encoder of random weights embeds, and is trained by DPR's step; random vectors are searched. What the time goes to is
torch's profile: a row for every kind of operation, in percent of the time of all. Seconds are those that the process
spends, which other jobs change less: with more threads than one they count for all of them.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from embedding_rate import MATRIX_SIZES, operations
from torch.profiler import ProfilerActivity, profile

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.retrieval.encode_batches import encode_sequences
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.tokens import TokenBatch

#: kinds of operations, by their names in a profile; the first that fits
KINDS = {
    "matrix products": "mm$|addmm|linear|_Product|baddbmm_$|bmm",
    "softmax": "softmax",
    "dropout": "dropout|bernoulli",
    "norms": "norm",
    "activation": "gelu|relu",
    "embeddings": "embedding|index_add|index",
    "optimizer": "adam|foreach",
    "sums, products, copies": "add|mul|copy|fill|zero|cat|clone|sum|div|to$",
}
_BANDWIDTH_VALUES = 1 << 26
#: forwards, and backwards to the states and to the weights
_TRAINING_PASSES = 3


@dataclass(kw_only=True, frozen=True)
class PeakShareConfig(Checked):
    """Measure shares of the peak."""

    shape: BertConfig = field(default_factory=lambda: BertConfig(num_layers=6, hidden_size=384, num_attention_heads=12))
    """The encoder; the default is MiniLM's shape. Vectors are means over all tokens."""
    num_tokens: PositiveInt = 128
    """Tokens of a passage."""
    num_passages: PositiveInt = 128
    """Passages embedded in a round; a quarter of them are questions' positives in training."""
    micro_batch_size: PositiveInt = 8
    """Texts at once in training."""
    num_rows: PositiveInt = 400_000
    """Vectors searched."""
    num_rounds: PositiveInt = 5
    """Rounds that are timed; the median counts."""
    num_threads: PositiveInt = 1
    """Threads; rates are for each."""


def main(config: PeakShareConfig) -> None:
    torch.set_num_threads(config.num_threads)
    rate = max(_matrix_rate(config, size) for size in MATRIX_SIZES["cpu"])
    bandwidth = _bandwidth(config)
    say = sys.stdout.write
    say(f"products: {rate / 1e9:.0f} GFLOP/s, memory: {bandwidth / 1e9:.1f} GB/s, {config.num_threads} threads\n\n")
    with process_topology(ParallelConfig(device="cpu")) as topology:
        works = [*_encoder_works(config, topology), *_searches(config)]
        rows = [
            [name, f"{value:.3g} {unit}", f"{value / (rate if unit == 'FLOP/s' else bandwidth):.0%}"]
            for name, value, unit in (_reached(config, *work) for work in works)
        ]
        say(text_table(["work", "reached", "share of the peak"], rows) + "\n\n")
        profiles = {name: _profile(work) for name, work, *_ in works}
    kinds = [*KINDS, "rest"]
    table = [[kind, *(f"{found[kind]:.1%}" for found in profiles.values())] for kind in kinds]
    say(text_table(["share of the time", *profiles], table) + "\n")


Work = tuple[str, Callable[[], object], float, str]


def _encoder_works(config: PeakShareConfig, topology: ProcessTopology) -> list[Work]:
    """Embedding and training: each with its operations."""
    shape = DualEncoderConfig(encoder=config.shape, pooling="mean", biencoder_shared_query_context_model=True)
    passages = _texts(config, config.num_passages)
    encoder = DualEncoder(shape, topology).eval()
    embed = partial(encode_sequences, passages, encoder.encode_passages, 128, topology.device)
    each = operations(config.shape, config.num_tokens)
    size = max(1, config.num_passages // 4)
    train = _training(config, shape, size, topology)
    plain = replace(shape, encoder=replace(config.shape, hidden_dropout=0.0, attention_dropout=0.0))
    trained = 2.0 * size * each * _TRAINING_PASSES
    return [
        ("embedding", embed, float(config.num_passages * each), "FLOP/s"),
        ("training", train, trained, "FLOP/s"),
        ("training without dropout", _training(config, plain, size, topology), trained, "FLOP/s"),
    ]


def _training(
    config: PeakShareConfig, shape: DualEncoderConfig, size: int, topology: ProcessTopology
) -> Callable[[], object]:
    """A step on `size` questions, which are as long as passages, and as many passages."""
    model = DualEncoder(shape, topology)
    parallel = DataParallelModel(model, topology)
    optimizer = Optimizer(parallel, OptimizerConfig(lr=1e-7), PrecisionConfig(), topology)
    settings = ContrastiveConfig(micro_batch_size=config.micro_batch_size, gradient_caching=False)
    step = ContrastiveStep(model, settings, topology, seed=0)
    batch = ContrastiveBatch(
        _texts(config, size),
        _texts(config, size, seed=1),
        torch.ones(size, dtype=torch.bool),
        torch.zeros(size, size, dtype=torch.bool),
        size,
    )

    def run() -> None:
        parallel.zero_gradients()
        step.forward_backward(batch, 0, 1.0)
        parallel.reduce_gradients()
        optimizer.step(1e-7)

    return run


def _searches(config: PeakShareConfig) -> list[Work]:
    """Of one question, whose time is reading a byte for each number, and of 64, whose time is products."""
    random, width = torch.Generator().manual_seed(2), config.shape.hidden_size
    vectors = torch.nn.functional.normalize(torch.randn(config.num_rows, width, generator=random), dim=1)
    index, queries = FlatIndex(vectors.half()), vectors[:64].clone()
    size = float(config.num_rows * width)
    return [
        ("search, 1 question", partial(index.search, queries[:1], 100), size, "B/s"),
        ("search, 64 questions", partial(index.search, queries, 100), 2 * 64 * size, "FLOP/s"),
    ]


def _texts(config: PeakShareConfig, count: int, seed: int = 0) -> TokenBatch:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.shape.vocab_size, (count, config.num_tokens), generator=random)
    return TokenBatch(ids, torch.full((count,), config.num_tokens))


def _matrix_rate(config: PeakShareConfig, size: int) -> float:
    left, right = torch.randn(size, size), torch.randn(size, size)
    return 2.0 * size**3 / _median(config, partial(torch.mm, left, right))


def _bandwidth(config: PeakShareConfig) -> float:
    """Bytes a second that are read by a sum."""
    values = torch.ones(_BANDWIDTH_VALUES)
    return values.nbytes / _median(config, values.sum)


def _reached(
    config: PeakShareConfig, name: str, work: Callable[[], object], amount: float, unit: str
) -> tuple[str, float, str]:
    return name, amount / _median(config, work), unit


def _median(config: PeakShareConfig, work: Callable[[], object]) -> float:
    work()  # warms up
    return statistics.median(_seconds(work) for _ in range(config.num_rounds))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _profile(work: Callable[[], object]) -> Counter[str]:
    """The share of every kind in the time of all operations."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares: Counter[str] = Counter()
    for event in events:
        shares[_kind(event.key)] += event.self_cpu_time_total / total
    return shares


def _kind(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if re.search(words, name)), "rest")


if __name__ == "__main__":
    run_program(PeakShareConfig, main)
