"""Attention of queries to keys and values, and masks that are added to its logits."""

from __future__ import annotations

import contextlib

import torch
from megatron.core import tensor_parallel
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.dropout import dropout as dropped
from megatron_retrieval.types.tokens import to_device

#: number of keys up to which the plain form is faster on CPU in half precision and training: in bf16 seven times for 16
#: keys, 2.8 times for 128, 1.4 times for 320, causal or not; its weights stay in memory
CPU_PLAIN_KEYS = 320
#: the same in float32 and training: 1.3 to 2 times for 16 keys; for 250 it takes 1.04 to 1.7 times as long, but 0.8
#: with a learned bias of pairs of tokens
CPU_PLAIN_KEYS_FLOAT32 = 128
#: the same in half precision and inference, not causal: 1.5 times for 168. In float32 it is not faster
CPU_PLAIN_KEYS_INFERENCE = 256
#: number of queries up to which it is faster in inference for any number of keys: a decoder's one query to 1,656 keys
#: takes a quarter to a tenth of the time in bf16, 0.8 in float32
CPU_PLAIN_QUERIES = 4


class ScaledDotProductAttention(nn.Module):
    """`softmax(Q K^T * scale + bias) V` for the heads of one tensor-parallel rank, on PyTorch's fused kernels.

    PyTorch chooses the kernel on CUDA (flash, memory-efficient, cuDNN); on CPU short sequences use the plain form, with
    the weights in memory.

    Args:
        scale: factor of the products of queries and keys.
        dropout: share of the attention weights dropped in training.
    """

    def __init__(self, *, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        *,
        is_explicit: bool = False,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            query: [T, B, heads, D]; `key` and `value` likewise, with their own T, and with fewer heads where heads in
                turn share them.
            bias: broadcastable to [B, heads, T, T of keys], added to the logits and differentiable. None: every query
                sees all keys.
            is_explicit: use the plain form, and add the bias in its own dtype.
            is_causal: in the place of a bias; a query sees the keys up to its own place alone.

        Returns:
            [T, B, heads * D]
        """
        q, k, v = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        if bias is not None and not is_explicit:
            bias = bias.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        # each rank has other heads, hence the random stream that differs between tensor-parallel ranks
        stream = tensor_parallel.get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext()
        with stream:
            if is_explicit or (q.device.type == "cpu" and self._is_short(q, k, bias, is_causal=is_causal)):
                if is_causal and (hidden := causal_bias(k.size(2), 0, q.dtype, q.device)) is not None:
                    bias = hidden[..., : q.size(2), :]
                attended = plain_attention(q, k, v, bias, dropout, self.scale)
            else:
                attended = F.scaled_dot_product_attention(
                    q, k, v, bias, dropout, is_causal, scale=self.scale, enable_gqa=q.size(1) != k.size(1)
                )
        return attended.permute(2, 0, 1, 3).flatten(2)

    def _is_short(self, query: Tensor, key: Tensor, bias: Tensor | None, *, is_causal: bool) -> bool:
        """Whether the plain form is faster on CPU."""
        is_half, num_keys = query.dtype != torch.float32, key.size(2)
        if self.training:  # the fused kernel neither drops weights nor gives a bias of pairs of tokens its gradient
            has_fused = not (self.dropout or (bias is not None and bias.size(-2) > 1))
            return num_keys <= (CPU_PLAIN_KEYS_FLOAT32 if has_fused and not is_half else CPU_PLAIN_KEYS)
        is_plain = query.size(2) <= CPU_PLAIN_QUERIES or (is_half and num_keys <= CPU_PLAIN_KEYS_INFERENCE)
        return is_plain and not is_causal


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """[B, heads, T, D] attention with its weights in memory."""
    if (num_sharing := query.size(1) // key.size(1)) > 1:
        key, value = (states.repeat_interleave(num_sharing, 1) for states in (key, value))
    logits = torch.matmul(query * scale, key.transpose(2, 3))
    if bias is not None:
        # in place: new memory costs more than the sum
        logits = logits.add_(bias) if bias.dtype == logits.dtype else logits + bias
    weights = logits.softmax(3).to(value.dtype)  # a bias in float32 makes them float32
    return torch.matmul(dropped(weights, dropout) if dropout else weights, value)


def padding_bias(lengths: Tensor, num_tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """[B] lengths, on the CPU, -> [B, 1, 1, T] additive mask on the device that hides padding; None where there is
    none."""
    if int(lengths.min()) >= num_tokens:
        return None
    hidden = torch.arange(num_tokens, device=device) >= to_device(lengths, device)[:, None]
    return additive(hidden[:, None, None, :], dtype)


def causal_bias(
    num_tokens: int, num_seen: int, dtype: torch.dtype, device: torch.device, *, window: int | None = None
) -> Tensor | None:
    """[1, 1, T, num_seen + T] additive mask that hides later tokens from the T tokens after the first `num_seen`; None
    for one token.

    Args:
        window: tokens that a token sees, itself included; None: all earlier ones.
    """
    if num_tokens == 1 and window is None:
        return None
    pairs = torch.ones(num_tokens, num_seen + num_tokens, dtype=torch.bool, device=device)
    hidden = pairs.triu(num_seen + 1)
    if window is not None:
        hidden |= pairs.tril(num_seen - window)
    return additive(hidden[None, None], dtype)


def additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The lowest finite number where hidden: with minus infinity, a row without visible keys would be NaN."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)
