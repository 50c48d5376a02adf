"""Encoding of sequences in batches of like length, which saves padding."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.config.checks import PositiveInt
from megatron_retrieval.parallel.precision import DtypeConfig, DtypeName, dtype_of
from megatron_retrieval.types.tokens import TokenBatch, by_length, in_given_order

#: tokens, padding included, that a CPU encodes at once: the activations of more leave its caches, and 128 passages of a
#: hundred tokens take twice as long as eight times 16 (MiniLM in bf16). In float32 they are twice as large, and matrix
#: products so slow that smaller ones cost nothing
CPU_TOKENS_AT_ONCE, CPU_TOKENS_AT_ONCE_IN_FLOAT32 = 2048, 512

Encode = Callable[[TokenBatch], Tensor]


@dataclass(kw_only=True, frozen=True)
class EncodeConfig(DtypeConfig):
    """How an encoder is run without training."""

    micro_batch_size: PositiveInt = 128
    """Texts encoded at once by each copy of the model; a CPU splits them into parts that fit its caches."""


@dataclass(kw_only=True, frozen=True)
class EncodePassagesConfig(EncodeConfig):
    """How an encoder is run over the whole evidence."""

    dtype: DtypeName = "auto"
    """Number format of weights and activations; auto: bf16 where the device is fast in it (GPUs since Ampere, CPUs with
    instructions for it), fp32 elsewhere."""


def encode_sequences(tokens: TokenBatch, encode: Encode, micro_batch_size: int, device: torch.device) -> Tensor:
    """Vectors [n, D] float32 on the CPU of all sequences, in their order."""
    batches = by_length(tokens.lengths, micro_batch_size, longest_first=True)
    return in_given_order(encode_batches(tokens, batches, encode, device), batches)


def encode_batches(tokens: TokenBatch, batches: list[Tensor], encode: Encode, device: torch.device) -> Tensor:
    """Vectors [n, D] float32 on the CPU of the sequences that `batches` name, in the order in which they do; see
    `encoded_batches`."""
    return torch.cat(list(encoded_batches(tokens, batches, encode, device)))


@torch.no_grad()
def encoded_batches(
    tokens: TokenBatch, batches: Sequence[Tensor], encode: Encode, device: torch.device
) -> Iterator[Tensor]:
    """Vectors [b, D] float32 on the CPU, batch by batch; a GPU has the next one to encode while the caller works.

    Args:
        batches: positions of sequences, the longest of a batch first.
    """
    num_ahead = 1 if device.type == "cuda" else 0  # what a CPU has computed is there
    model = _model_of(encode)
    dtype = torch.float32 if model is None else dtype_of(model)
    coming: deque[_Coming] = deque()
    for batch in batches:
        parts = parts_at_once(tokens.lengths[batch], batch, device, dtype)
        vectors = torch.cat([encode(tokens.rows(part).to(device)).float() for part in parts])
        coming.append(_Coming(vectors))
        if len(coming) > num_ahead:
            yield coming.popleft().arrived()
    yield from (each.arrived() for each in coming)


class _Coming:
    """Vectors on their way to the CPU, into pinned memory."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if vectors.is_cuda else None
        if self._event is not None:
            self._event.record()

    def arrived(self) -> Tensor:
        """Wait for them alone, not for what the device was given after them."""
        if self._event is not None:
            self._event.synchronize()
        return self._vectors


def parts_at_once(lengths: Tensor, batch: Tensor, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """A batch, longest first, in parts of as many tokens as a CPU encodes at once by weights of `dtype`, or of one
    sequence; whole on other devices."""
    if device.type != "cpu":
        return [batch]
    most = CPU_TOKENS_AT_ONCE_IN_FLOAT32 if dtype == torch.float32 else CPU_TOKENS_AT_ONCE
    sizes, start = [], 0
    while start < len(batch):
        size = max(1, most // int(lengths[start]))
        sizes.append(min(size, len(batch) - start))
        start += size
    return list(batch.split(sizes))


def require_evaluation_mode(encode: Encode) -> None:
    """Refuse a model in training mode: dropout must never reach an index."""
    model = _model_of(encode)
    if model is not None and model.training:
        raise ValueError("the encoder is in training mode; call .eval() before it encodes for search")


def precision_of(encode: Encode) -> str:
    """The type of the weights of the model that encodes; empty where it is no method of one."""
    model = _model_of(encode)
    return "" if model is None else str(dtype_of(model)).removeprefix("torch.")


def _model_of(encode: Encode) -> torch.nn.Module | None:
    model = getattr(encode, "__self__", None)
    return model if isinstance(model, torch.nn.Module) else None
