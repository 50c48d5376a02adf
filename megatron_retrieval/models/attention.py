"""Core attention for megatron-core's module specs, on PyTorch's fused kernels."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

#: up to so many keys the plain form is faster on CPU, in bf16 2.5 times for 128 keys in training, 1.5 times for 168 in
#: inference; in inference in float32 it is not
CPU_PLAIN_KEYS = 256
#: up to so many queries it is faster in inference, whatever the keys: a decoder's one query to 1,656 keys takes a
#: quarter to a tenth of the time in bf16, 0.8 in float32
CPU_PLAIN_QUERIES = 4


class ScaledDotProductAttention(MegatronModule):
    """`softmax(Q K^T * scale + bias) V` for the heads of one tensor-parallel rank.

    Takes the place of megatron-core's `DotProductAttention`, which refuses a bias and holds the [T, T] weights.
    PyTorch chooses the kernel on CUDA (flash, memory-efficient, cuDNN); on CPU, short sequences take the plain form.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.is_causal = attn_mask_type == AttnMaskType.causal
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: None = None,
        is_explicit: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            query: [T, B, heads, D]; `key` and `value` likewise, with their own T.
            attention_mask: broadcastable to [B, heads, T, T of keys]. Bool: True hides a key, Megatron's convention.
                Float: added to the logits, and differentiable. None: all keys are visible, or the earlier ones where
                the specification asks for causal attention.
            attention_bias: added to the logits as well.
            is_explicit: take the plain form, and add the biases in their own precision.

        Returns:
            [T, B, heads * D]
        """
        q, k, v = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        is_causal = self.is_causal and attention_mask is None
        if is_causal and (attention_bias is not None or is_explicit):
            attention_mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).triu(1)
            is_causal = False
        bias = _sum_of_biases(attention_mask, attention_bias, q.dtype)
        if bias is not None and not is_explicit:
            bias = bias.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        # each rank drops weights of its own heads, hence from the stream that differs between tensor-parallel ranks
        stream = tensor_parallel.get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext()
        with stream:
            if is_explicit or (not is_causal and q.device.type == "cpu" and self._is_short(q, k)):
                attended = _plain_attention(q, k, v, bias, dropout, self.scale)
            else:
                attended = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=is_causal, scale=self.scale
                )
        return attended.permute(2, 0, 1, 3).flatten(2)

    def _is_short(self, query: Tensor, key: Tensor) -> bool:
        """Whether the plain form is the faster one on CPU."""
        if not self.training and query.size(2) <= CPU_PLAIN_QUERIES:
            return True
        return key.size(2) <= CPU_PLAIN_KEYS and (self.training or query.dtype != torch.float32)


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, scale: float | None
) -> Tensor:
    """[B, heads, T, D] attention with its weights in memory."""
    logits = torch.matmul(query * (query.size(3) ** -0.5 if scale is None else scale), key.transpose(2, 3))
    weights = (logits if bias is None else logits + bias).softmax(3)
    weights = weights.to(value.dtype)  # those of a bias in float32 are in float32
    return torch.matmul(F.dropout(weights, dropout) if dropout else weights, value)


def padding_bias(lengths: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor | None:
    """[B] lengths -> [B, 1, 1, T] additive mask that hides padding keys; None where nothing is padded."""
    if int(lengths.min()) >= num_tokens:
        return None
    hidden = torch.arange(num_tokens, device=lengths.device) >= lengths[:, None]
    return _additive(hidden[:, None, None, :], dtype)


def causal_bias(num_tokens: int, num_seen: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """[1, 1, T, num_seen + T] additive mask that hides later tokens from the T after `num_seen`; None where there are
    none."""
    if num_tokens == 1:
        return None
    hidden = torch.ones(num_tokens, num_seen + num_tokens, dtype=torch.bool, device=device).triu(num_seen + 1)
    return _additive(hidden[None, None], dtype)


def _sum_of_biases(mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is not None and mask.dtype == torch.bool:
        mask = _additive(mask, dtype)
    return bias if mask is None else mask if bias is None else mask + bias


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The lowest finite number rather than minus infinity: a row with no visible key must not become NaN."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)
