"""Dropout whose random numbers cost little on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: a value is dropped by 16 random bits of its own
_STEPS = 1 << 16


class Dropout(nn.Dropout):
    """`nn.Dropout` by way of `dropout`."""

    def forward(self, states: Tensor) -> Tensor:
        """[...] -> [...]."""
        return dropout(states, self.p) if self.training and self.p else states


def dropout(states: Tensor, share: float) -> Tensor:
    """Set a share of the values to zero and scale the others, so that expectations stay.

    On a CPU torch draws one bit after another from a Mersenne Twister, which in training takes a fifth of the time of
    all matrix products. Here its generator, whose state is what streams and repeated passes keep, gives the seed of one
    that gives 64 bits at a time (Doty-Humphrey's SFC64).
    """
    if states.device.type != "cpu":
        return F.dropout(states, share)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-states.numel() // 4))
    drawn = torch.from_numpy(words.view(np.int16))[: states.numel()].view(states.shape)
    num_dropped = min(round(share * _STEPS), _STEPS - 1)
    kept = (drawn >= num_dropped - _STEPS // 2).to(states.dtype)
    return states * kept.mul_(_STEPS / (_STEPS - num_dropped))
