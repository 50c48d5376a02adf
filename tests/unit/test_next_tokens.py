"""The best next tokens of logits that are no numbers are none."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.distributed as dist

from megatron_retrieval.errors import DivergenceError
from megatron_retrieval.models.next_tokens import best_tokens


class _OneRank:
    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


@pytest.mark.parametrize("num_nans", [1, 6])
def test_nan_ends_with_a_sentence(num_nans: int) -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    group = cast(dist.ProcessGroup, _OneRank())
    assert best_tokens(logits.clone(), 2, group).ids.shape == (3, 2)
    logits[1, :num_nans] = torch.nan
    with pytest.raises(DivergenceError, match="logits of the next token are not finite"):
        best_tokens(logits, 2, group)
