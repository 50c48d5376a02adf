"""Passages that an encoder embeds a second, and the share of the device's matrix rate that it makes use of.

The encoder is random, BERT-base unless other flags say so, and every passage has as many tokens. The matrix rate is
that of the best of some square products in the same type, measured beside it. Before anything is timed, vectors are
compared with those of the same weights in float32.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.retrieval.encode_batches import EncodeConfig, encode_batches
from megatron_retrieval.types.tokens import TokenBatch

#: cosine with float32, below which half precision is broken
LEAST_COSINE = 0.99
#: products of these sizes come near a device's matrix rate
MATRIX_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}


@dataclass(kw_only=True, frozen=True)
class EmbeddingRateConfig(Checked):
    """Measure passages a second, and the share of the matrix rate."""

    shape: BertConfig = field(default_factory=BertConfig)
    """The encoder."""
    num_tokens: PositiveInt = 128
    """Tokens of a passage."""
    num_passages: PositiveInt = 8192
    """Passages embedded in a round."""
    num_rounds: PositiveInt = 5
    """Rounds that are timed."""
    matrix_sizes: tuple[PositiveInt, ...] | None = None
    """Rows of the square matrices whose products show the matrix rate; default: up to 2048 on CPU, 16384 on CUDA."""
    device: str | None = None
    """cpu or cuda; default: cuda where it is available."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How the encoder is run."""


def main(config: EmbeddingRateConfig) -> None:
    with process_topology(ParallelConfig(device=config.device)) as topology:
        found = measure(config, topology)
    rows = [
        ["passages a second", f"{found['passages_per_second']:,.0f}"],
        ["operations a second", f"{found['operations_per_second']:.3g}"],
        ["best matrix product", f"{found['matrix_operations_per_second']:.3g}"],
        ["share", f"{found['share']:.2f}"],
        ["least cosine with float32", f"{found['least_cosine']:.6f}"],
    ]
    sys.stdout.write(text_table(["", str(topology.device)], rows) + "\n")


def measure(config: EmbeddingRateConfig, topology: ProcessTopology) -> dict[str, float]:
    """The rates, in seconds.

    Raises:
        MismatchError: the vectors are not those of float32.
    """
    tokens, dtype = _tokens(config), config.encode.on(topology.device)
    model = _model(config, dtype, topology)
    cosine = _least_cosine(model, _model(config, torch.float32, topology), tokens.rows(torch.arange(4)), topology)
    batches = list(torch.arange(len(tokens)).split(config.encode.micro_batch_size))
    embed = partial(encode_batches, tokens, batches, model.encode_passages, topology.device)
    seconds = _median_seconds(embed, config.num_rounds)
    used = config.num_passages * operations(config.shape, config.num_tokens) / seconds
    rate = matrix_rate(config.matrix_sizes, dtype, topology.device)
    return {
        "passages_per_second": config.num_passages / seconds,
        "operations_per_second": used,
        "matrix_operations_per_second": rate,
        "share": used / rate,
        "least_cosine": cosine,
    }


def matrix_rate(sizes: Sequence[int] | None, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the best of some square products."""
    return max(_matrix_rate(size, dtype, device) for size in sizes or MATRIX_SIZES[device.type])


def operations(shape: BertConfig, num_tokens: int) -> int:
    """Multiplications and additions of the matrix products of one passage."""
    width = shape.hidden_size
    linear = 2 * num_tokens * width * (4 * width + 2 * shape.ffn_size)
    attention = 4 * num_tokens**2 * width
    return shape.num_layers * (linear + attention)


def _tokens(config: EmbeddingRateConfig) -> TokenBatch:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(config.shape.vocab_size, (config.num_passages, config.num_tokens), generator=random)
    return TokenBatch(ids, torch.full((config.num_passages,), config.num_tokens))


def _model(config: EmbeddingRateConfig, dtype: torch.dtype, topology: ProcessTopology) -> DualEncoder:
    # the states of all tokens are wanted: a vector of [CLS] alone leaves out most of the last layer
    shape = DualEncoderConfig(encoder=config.shape, pooling="mean", biencoder_shared_query_context_model=True)
    return DualEncoder(shape, topology, dtype).eval()


def _least_cosine(model: DualEncoder, exact: DualEncoder, tokens: TokenBatch, topology: ProcessTopology) -> float:
    """Raises MismatchError: the vectors are not those of float32."""
    whole = [torch.arange(len(tokens))]
    vectors = [encode_batches(tokens, whole, encoder.encode_passages, topology.device) for encoder in (model, exact)]
    cosine = float(F.cosine_similarity(*vectors).min())
    if cosine < LEAST_COSINE:
        raise MismatchError(f"vectors have a cosine of {cosine:.4f} with those of float32; speeds mean nothing.")
    return cosine


def _median_seconds(work: Callable[[], Tensor], num_rounds: int) -> float:
    work()  # warms up
    return statistics.median(_seconds(work) for _ in range(num_rounds))


def _seconds(work: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    work().cpu()  # waits for the device
    return time.perf_counter() - started


def _matrix_rate(size: int, dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    """Operations a second of the product of two square matrices."""
    matrices = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(2)]

    def multiply() -> Tensor:
        for _ in range(repeats):
            product = matrices[0] @ matrices[1]
        return product[0, :1]

    return repeats * 2 * size**3 / _median_seconds(multiply, 3)


if __name__ == "__main__":
    run_program(EmbeddingRateConfig, main)
