"""When skipped steps end a run."""

from __future__ import annotations

import math

import pytest

from megatron_retrieval.errors import DivergenceError
from megatron_retrieval.parallel.optimizer import StepResult
from megatron_retrieval.training.skipped_steps import MAX_SKIPPED_IN_A_ROW, SkippedSteps

Step = tuple[float, StepResult]
GOOD: Step = (1.0, StepResult(True, 1.0))
ILL_GRADIENT: Step = (1.0, StepResult(False, math.nan))
SEARCH: Step = (1.0, StepResult(False, None, is_searching_scale=True))
AT_THE_LOWEST_SCALE: Step = (1.0, StepResult(False, None))
ILL_LOSS_IN_FP16: Step = (math.inf, StepResult(False, None, is_searching_scale=True))
ALMOST = MAX_SKIPPED_IN_A_ROW - 1


@pytest.mark.parametrize(
    ("steps", "last"),
    [
        ([ILL_GRADIENT] * 20, MAX_SKIPPED_IN_A_ROW),
        ([AT_THE_LOWEST_SCALE] * 20, MAX_SKIPPED_IN_A_ROW),
        ([ILL_LOSS_IN_FP16] * 20, MAX_SKIPPED_IN_A_ROW),
        ([SEARCH] * 20, None),
        ([*[ILL_GRADIENT] * ALMOST, GOOD] * 3, None),
        ([*[ILL_GRADIENT] * ALMOST, SEARCH, SEARCH, ILL_GRADIENT], ALMOST + 3),
    ],
    ids=["gradient", "lowest scale", "loss in fp16", "search of the scale", "a good one between", "search between"],
)
def test_a_few_in_a_row_end_a_run(steps: list[Step], last: int | None) -> None:
    skipped = SkippedSteps()
    for iteration, step in enumerate(steps, 1):
        if iteration == last:
            with pytest.raises(DivergenceError, match=f"iteration {last}: "):
                skipped.note(iteration, *step)
            break
        skipped.note(iteration, *step)
    assert skipped.total == sum(not result.succeeded for _, result in steps[:last])
