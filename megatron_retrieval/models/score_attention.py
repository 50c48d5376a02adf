"""Attention with a bias for every key, as the scores of passages are in a decoder's cross-attention (Sachan et al.
2021, arXiv 2101.00408, eq. 7): three forms of one computation, equal in what they give and in their gradients.

- explicit: logits, bias, softmax, product, one after the other, with the weights in memory.
- mask: PyTorch's fused kernels with the bias as additive mask. On CUDA no flash kernel takes a mask, on CPU none takes
  a mask that needs a gradient: PyTorch then computes the weights one after the other as well.
- feature: fused kernels without any mask. Keys get a few features more, which hold the bias, and queries as many
  constants: their product is the bias, within the same matrix product that makes the logits. It costs a copy of keys
  and values; values are widened as well, since flash kernels ask for equal widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional as F

ScoreForm = Literal["explicit", "mask", "feature"]

#: in bf16 a feature has 8 bits: high, middle and low part together have the 24 of a score in float32
NUM_PARTS = 3
#: of queries; 1 would do but for fp16, which ends at 65,504 and loses bits below 0.0001
QUERY_CONSTANT = 16.0
#: kernels want heads whose width is a multiple of this
HEAD_WIDTH_STEP = 8


def choose_form(
    wish: Literal["auto", "explicit", "mask", "feature"], device: torch.device, dtype: torch.dtype, head_width: int
) -> ScoreForm:
    """The form to compute in; for `auto` the feature form on CUDA where a flash kernel takes heads of this dtype and
    width with the features, and else the mask, which needs no copy of keys and values."""
    if wish != "auto":
        return wish
    if device.type == "cuda" and _flash_takes(device, dtype, width_with_features(head_width)):
        return "feature"
    return "mask"


def _flash_takes(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether PyTorch's flash kernel computes attention of such heads and its gradient."""
    states = torch.empty(1, 1, 1, width, device=device, dtype=dtype, requires_grad=True)
    takes: bool = can_use_flash_attention(SDPAParams(states, states, states, None, 0.0, False, False))
    return takes


def width_with_features(head_width: int) -> int:
    """Width of a head's keys, queries and values in the feature form."""
    return -(-(head_width + NUM_PARTS) // HEAD_WIDTH_STEP) * HEAD_WIDTH_STEP


def add_key_features(key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Keys that hold a bias, and values as wide.

    Padding's weight is exactly 0: what its features add to a logit is half the lowest number of the dtype, times
    `scale`. The lowest itself, divided by the scale, would not be finite. Where all keys of a source are padding, none
    is hidden: flash kernels keep the sum of a row's weights as a logarithm, which such numbers would swallow.

    Args:
        key: [T, B, heads, D]; `value` likewise, with its own D.
        bias: [B, 1, 1, T], differentiable, best in float32: it is rounded to the keys' dtype part by part.
        scale: what attention multiplies products of queries and keys by.

    Returns:
        [T, B, heads, width_with_features(D)] each.
    """
    bias = bias[:, 0, 0].t()[..., None, None].to(torch.promote_types(bias.dtype, torch.float32))
    bias = bias - bias.detach().amax(0)  # no weight changes when all logits of a row do alike
    rest = bias.clamp(min=torch.finfo(key.dtype).min * scale / 2) / (scale * QUERY_CONSTANT)
    parts = []
    for _ in range(NUM_PARTS):
        parts.append(rest.to(key.dtype))
        # every part has the same gradient, that of the bias: the first alone passes it on
        rest = (rest - parts[-1]).detach()
    width = width_with_features(key.size(3))
    features = F.pad(torch.cat(parts, 3), (0, width - key.size(3) - NUM_PARTS))
    widened = torch.cat([key, features.expand(-1, key.size(1), key.size(2), -1)], 3)
    return widened, F.pad(value, (0, width - value.size(3)))


def attend_to_features(core_attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention to keys and values of `add_key_features`.

    Args:
        query: [L, B, heads, D], not widened.

    Returns:
        [L, B, heads * D]
    """
    num_heads, head_width = query.shape[2:]
    attended = core_attention(add_query_features(query), key, value, None)
    return attended.unflatten(2, (num_heads, -1))[..., :head_width].flatten(2)


def add_query_features(query: Tensor) -> Tensor:
    """[..., D] -> [..., width_with_features(D)]: queries that read what `add_key_features` wrote."""
    head_width = query.size(-1)
    features = query.new_zeros(*query.shape[:-1], width_with_features(head_width) - head_width)
    features[..., :NUM_PARTS] = QUERY_CONSTANT
    return torch.cat([query, features], -1)
