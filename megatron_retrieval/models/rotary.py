"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys are turned by their position, so that their
product depends on the distance. The two halves of a head are the two coordinates, as in Llama."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def rotary(positions: Tensor, head_width: int, base: float, dtype: torch.dtype) -> Rotary:
    """The angles of tokens at `positions` [L, R or 1], on their device: position * base ** (-2 i / head width) for the
    pair i of coordinates."""
    exponents = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angles = positions[..., None, None].float() * (1 / base**exponents)
    return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))
