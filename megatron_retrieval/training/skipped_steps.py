"""A step whose loss or gradient is not finite is skipped: the weights stay as they are; a few in a row end the run."""

from __future__ import annotations

import math

from megatron_retrieval.errors import RunDivergedError
from megatron_retrieval.parallel.optimizer import StepResult
from megatron_retrieval.utils.logging import get_logger

#: skipped steps in a row that end a run
MAX_SKIPPED_IN_A_ROW = 5

_REMEDY = (
    "Lower --lr and resume an earlier checkpoint, or start anew from it with --pretrained-checkpoint and another "
    "--seed."
)
#: above all in T5, whose activations grow from layer to layer
_REMEDY_OF_FP16 = "Values leave the range of fp16: train with --bf16."

log = get_logger("trainer")


class SkippedSteps:
    """Counts the steps that were skipped.

    With fp16, steps are skipped while the loss scale is still being found; they count towards the end of a run only
    once the scale cannot be lowered any further.

    Attributes:
        total: in this process.
    """

    def __init__(self) -> None:
        self.total, self._in_a_row = 0, 0

    def note(self, iteration: int, loss: float, result: StepResult) -> None:
        """Take note of a step.

        Raises:
            RunDivergedError: too many in a row were skipped.
        """
        if result.succeeded:
            self._in_a_row = 0
            return
        self.total += 1
        reason = _reason(loss, result)
        if result.is_searching_scale and math.isfinite(loss):
            log.info("iteration %d: %s, step skipped, loss scale lowered", iteration, reason)
            return
        self._in_a_row += 1
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RunDivergedError(
                f"iteration {iteration}: {reason}; it is step {self._in_a_row} in a row that was skipped, and the "
                f"weights are those before them. {_REMEDY_OF_FP16 if result.overflowed else _REMEDY}"
            )
        log.warning("iteration %d: %s, step %d in a row skipped", iteration, reason, self._in_a_row)


def _reason(loss: float, result: StepResult) -> str:
    if not math.isfinite(loss):
        return "the loss is not finite"
    return "gradients overflowed" if result.overflowed else "the gradient is not finite"
