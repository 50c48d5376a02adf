"""The rates that a plan counts with: given, measured, or assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.config import PlanConfig
from megatron_retrieval.applications.plan.rates import MeasuredRates
from megatron_retrieval.index.store.embedding_store import torch_dtype

_ASSUMED_BUILD_RATE, _ASSUMED_DISK_RATE = 2500.0, 1e9
#: of one socket of a server
_ASSUMED_CPU_MEMORY_RATE = 5e10

Origin = Literal["given", "measured here", "assumed"]


@dataclass(frozen=True)
class Rate:
    """A rate per second, and where it comes from."""

    value: float
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one process does in a second.

    Attributes:
        train: passages that pass the encoder forward and backward.
        search: rows compared with the questions of a search.
        build_start_seconds, search_start_seconds: fixed times.
    """

    build: Rate
    encode: Rate
    train: Rate
    search: Rate
    disk: Rate
    build_start_seconds: float = 0.0
    search_start_seconds: float = 0.0


def known_rates(config: PlanConfig, measured: MeasuredRates | None) -> Rates:
    """A rate that is given, else the measured one, else what the hardware's figures say."""
    given = config.rates
    assumed_search = 1 / costs.search_seconds(
        1,
        config.encoder.dimension,
        searched_bytes(config),
        config.num_queries,
        operations_per_second=given.fp32_teraflops * 1e12 if config.hardware.gpus else costs.CPU_OPERATIONS,
        bytes_per_second=given.memory_gb_per_second * 1e9 if config.hardware.gpus else _ASSUMED_CPU_MEMORY_RATE,
    )
    disk = given.disk_megabytes_per_second
    assumed_encode = _assumed_operations_per_second(config) / passage_operations(config)
    encode = _rate(given.encode_passages_per_second, measured, "encode_passages_per_second", assumed_encode)
    assumed_train = encode.value / costs.TRAINING_PASSES
    return Rates(
        build=_rate(given.build_passages_per_second, measured, "build_passages_per_second", _ASSUMED_BUILD_RATE),
        encode=encode,
        train=_rate(given.train_passages_per_second, measured, "train_passages_per_second", assumed_train),
        search=_rate(given.search_rows_per_second, measured, "search_rows_per_second", assumed_search),
        disk=_rate(disk and disk * 1e6, measured, "disk_bytes_per_second", _ASSUMED_DISK_RATE),
        build_start_seconds=measured.build_start_seconds if measured else 0.0,
        search_start_seconds=measured.search_start_seconds if measured else 0.0,
    )


def passage_operations(config: PlanConfig) -> float:
    """Of the forward pass that makes the vector of a passage of mean length."""
    tokens = costs.encoded_tokens(config.sizes.mean_tokens, config.text_format.retriever_seq_length)
    return costs.vector_operations(config.encoder, tokens)


def _assumed_operations_per_second(config: PlanConfig) -> float:
    """Of a process in forward and backward passes."""
    return config.rates.gpu_operations_per_second if config.hardware.gpus else costs.CPU_OPERATIONS


def searched_bytes(config: PlanConfig) -> int:
    """Bytes of a number that exact search multiplies."""
    return torch_dtype(config.embedding_dtype).itemsize if config.hardware.gpus else 1


def _rate(given: float | None, measured: MeasuredRates | None, name: str, assumed: float) -> Rate:
    if given is not None:
        return Rate(given, "given")
    return Rate(assumed, "assumed") if measured is None else Rate(getattr(measured, name), "measured here")
