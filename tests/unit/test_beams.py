"""When a question is done."""

from __future__ import annotations

import pytest
import torch

from megatron_retrieval.models.beams import Beams, BestTokens

END, WORD, OTHER = 1, 5, 6


@pytest.mark.parametrize(("open_score", "num_open"), [(-1.5, 0), (-2.0, 0), (-1.25, 2)])
def test_an_open_sequence_must_score_higher_than_the_last_answer(open_score: float, num_open: int) -> None:
    """Two beams: an answer of one token, then one of two, which scores -1.5 a token, beside an open sequence."""
    beams = Beams(
        1, num_beams=2, max_length=9, length_penalty=1.0, stop_at_first=False, end_id=END, device=torch.device("cpu")
    )
    never = -100.0
    first = BestTokens(torch.tensor([[WORD, END, OTHER, 7]]), torch.tensor([[-0.5, -1.0, never, never]]))
    assert len(beams.advance(first).tokens) == 2, "one answer of two"
    second = BestTokens(
        torch.tensor([[WORD, END, OTHER, 7], [WORD, END, OTHER, 7]]),
        torch.tensor([[2 * open_score + 0.5, -2.5, never, never], [never] * 4]),
    )
    assert len(beams.advance(second).tokens) == num_open
    assert beams.result().best.scores.tolist() == [-1.0]
