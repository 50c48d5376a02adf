"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys are turned by their position, so that their
product depends on the distance. The two halves of a head are the two coordinates, as in Llama."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: tokens of a text of Llama 3, and how often pairs of coordinates turn within them that are scaled, or kept
_FIRST_TRAINED_ON, _SCALED_BELOW, _KEPT_FROM = 8192, 1.0, 4.0


class Rotary(NamedTuple):
    """The angles of tokens.

    Attributes:
        cosine: [L, R or 1, 1, head width / 2] in the dtype of the states; `sine` likewise.
    """

    cosine: Tensor
    sine: Tensor

    def turn(self, states: Tensor) -> Tensor:
        """[L, R, heads, head width] -> the same, turned."""
        first, second = states.chunk(2, -1)
        turned = first * self.cosine - second * self.sine, second * self.cosine + first * self.sine
        return torch.cat(turned, -1)


def rotary(
    positions: Tensor, head_width: int, base: float, dtype: torch.dtype, scaling_factor: float | None = None
) -> Rotary:
    """The angles of tokens at `positions` [L, R or 1], on their device: position times `frequencies`."""
    turns = frequencies(head_width, base, scaling_factor, positions.device)
    angles = positions[..., None, None].float() * turns
    return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))


def frequencies(
    head_width: int, base: float, scaling_factor: float | None = None, device: torch.device | None = None
) -> Tensor:
    """[head width / 2] base ** (-2 i / head width) for the pair i of coordinates.

    Args:
        scaling_factor: of Llama 3.1 (Dubey et al. 2024, arXiv 2407.21783, section 3.4), which stretches positions to
            texts longer than the 8,192 tokens that it was first trained on. Pairs that turn less than once within those
            are slower by the factor, pairs that turn four times or more stay, those between are between.
    """
    turns = 1 / base ** (torch.arange(0, head_width, 2, device=device).float() / head_width)
    if scaling_factor is None:
        return turns
    times = _FIRST_TRAINED_ON * turns / (2 * math.pi)
    kept = ((times - _SCALED_BELOW) / (_KEPT_FROM - _SCALED_BELOW)).clamp(0, 1)
    return turns * (kept + (1 - kept) / scaling_factor)
