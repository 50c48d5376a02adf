"""Dropout drops the share that it is told, keeps expectations, and follows torch's random stream."""

from __future__ import annotations

import pytest
import torch

from megatron_retrieval.models.dropout import Dropout, dropout


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_is_dropped_and_the_rest_scaled(share: float) -> None:
    torch.manual_seed(1)
    states = torch.full((301, 333), 3.0, requires_grad=True)
    found = dropout(states, share)
    found.sum().backward()
    kept = found != 0
    # four standard deviations of a mean of 100,000
    assert (1 - kept.float().mean()).item() == pytest.approx(share, abs=4 * (share * (1 - share) / kept.numel()) ** 0.5)
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 3 / (1 - share)), rtol=1e-4, atol=0)
    assert states.grad is not None
    torch.testing.assert_close(states.grad * 3, found.detach())
    # neighbours, and what is drawn next, have nothing to do with one another
    assert (kept[:, 1:] & kept[:, :-1]).float().mean().item() == pytest.approx((1 - share) ** 2, abs=0.01)
    assert ((dropout(states, share) != 0) & kept).float().mean().item() == pytest.approx((1 - share) ** 2, abs=0.01)


def test_the_stream_decides() -> None:
    states, drawn = torch.ones(7, 5), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append((dropout(states, 0.5), dropout(states.half(), 0.5)))
    assert all(torch.equal(first, second) for first, second in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert drawn[0][1].dtype == torch.float16


def test_nothing_is_dropped_in_evaluation() -> None:
    states, module = torch.ones(3), Dropout(0.9)
    assert module.eval()(states) is states
    assert Dropout(0.0)(states) is states
    assert dropout(torch.ones(0, 4), 0.5).shape == (0, 4)
