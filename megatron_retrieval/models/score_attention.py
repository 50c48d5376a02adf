"""Attention with a bias per key, such as passage scores in a decoder's cross-attention (Sachan et al. 2021, arXiv
2101.00408, eq. 7), in three forms with the same result and the same gradients.

- explicit: logits, bias, softmax and product in separate steps, with the weights in memory.
- mask: PyTorch's fused kernels with the bias as additive mask. No flash kernel takes a mask on CUDA, and none takes a
  mask with a gradient on CPU: PyTorch then computes the weights in memory as well.
- feature: fused kernels without a mask. Additional features of the keys hold the bias, and constant features of the
  queries read it within the product that makes the logits. It costs a copy of keys and values; values are widened too,
  since flash kernels need equal widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional as F

ScoreForm = Literal["explicit", "mask", "feature"]

#: a bf16 feature has 8 bits: the high, middle and low parts of a score hold the 24 bits of float32
NUM_PARTS = 3
#: constant feature of queries; above 1 for fp16, whose range ends at 65,504 and which loses bits below 0.0001
QUERY_CONSTANT = 16.0
#: kernels need head widths that are a multiple of this
HEAD_WIDTH_STEP = 8


def choose_form(
    wish: Literal["auto", "explicit", "mask", "feature"], device: torch.device, dtype: torch.dtype, head_width: int
) -> ScoreForm:
    """The form to use; for `auto` the feature form on CUDA where a flash kernel supports this dtype and the widened
    heads, else the mask, which needs no copy of keys and values."""
    if wish != "auto":
        return wish
    if device.type == "cuda" and _flash_takes(device, dtype, width_with_features(head_width)):
        return "feature"
    return "mask"


def _flash_takes(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether PyTorch's flash kernel supports such heads, with gradients."""
    states = torch.empty(1, 1, 1, width, device=device, dtype=dtype, requires_grad=True)
    takes: bool = can_use_flash_attention(SDPAParams(states, states, states, None, 0.0, False, False))
    return takes


def width_with_features(head_width: int) -> int:
    """Width of a head's keys, queries and values in the feature form."""
    return -(-(head_width + NUM_PARTS) // HEAD_WIDTH_STEP) * HEAD_WIDTH_STEP


def add_key_features(key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Keys with features that hold the bias, and values padded to the same width.

    The attention weight of padding is exactly 0: its features add half the lowest number of the dtype, times `scale`,
    to a logit. The lowest number itself would not be finite when divided by the scale. Where all keys of a source are
    padding, none is hidden: flash kernels keep the logarithm of a row's sum, which would lose such numbers.

    Args:
        key: [T, B, heads, D]; `value` likewise, with its own D.
        bias: [B, 1, 1, T], differentiable, best in float32: each of its parts is rounded to the keys' dtype.
        scale: factor of the products of queries and keys.

    Returns:
        [T, B, heads, width_with_features(D)] each.
    """
    bias = bias[:, 0, 0].t()[..., None, None].to(torch.promote_types(bias.dtype, torch.float32))
    bias = bias - bias.detach().amax(0)  # a constant for all logits of a row changes no weight
    rest = bias.clamp(min=torch.finfo(key.dtype).min * scale / 2) / (scale * QUERY_CONSTANT)
    parts = []
    for _ in range(NUM_PARTS):
        parts.append(rest.to(key.dtype))
        # every part has the gradient of the bias: only the first passes it on
        rest = (rest - parts[-1]).detach()
    width = width_with_features(key.size(3))
    features = F.pad(torch.cat(parts, 3), (0, width - key.size(3) - NUM_PARTS))
    widened = torch.cat([key, features.expand(-1, key.size(1), key.size(2), -1)], 3)
    return widened, F.pad(value, (0, width - value.size(3)))


def attend_to_features(core_attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to keys and values of `add_key_features`.

    Args:
        query: [L, B, heads, D], not widened.

    Returns:
        [L, B, heads * D]
    """
    num_heads, head_width = query.shape[2:]
    attended = core_attention(add_query_features(query), key, value, None)
    return attended.unflatten(2, (num_heads, -1))[..., :head_width].flatten(2)


def add_query_features(query: Tensor) -> Tensor:
    """[..., D] -> [..., width_with_features(D)]: queries with the constants that read `add_key_features`."""
    head_width = query.size(-1)
    features = query.new_zeros(*query.shape[:-1], width_with_features(head_width) - head_width)
    features[..., :NUM_PARTS] = QUERY_CONSTANT
    return torch.cat([query, features], -1)
