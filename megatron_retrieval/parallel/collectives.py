"""Collectives, differentiable where the name says so. Groups are always passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from megatron_retrieval.errors import MegatronRetrievalError

Value = TypeVar("Value")


class _GatherRows(torch.autograd.Function):
    """Concatenate the rows of all ranks; the gradient of a row is summed over the losses of all ranks."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.num_rows = group, rows.size(0)  # type: ignore[attr-defined]
        return gather_rows(rows, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        add_up(gradient, ctx.group)
        return gradient.narrow(0, ctx.group.rank() * ctx.num_rows, ctx.num_rows), None


def gather_rows_with_grad(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[n, ...] on each of W ranks -> [W * n, ...] in rank order, differentiable.

    If rank r minimises loss_r, the gradient that reaches `rows` is that of the sum of all loss_r, so that losses
    summed (not averaged) over ranks equal those of one process that holds every row.
    """
    if group.size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, group)
    return gathered


def gather_rows(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[n, ...] on each of W ranks -> [W * n, ...] in rank order, without gradient; n must be equal on all ranks."""
    if group.size() == 1:
        return rows.detach()
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(group.size())]
    dist.all_gather(parts, rows, group=group)
    return torch.cat(parts)


def all_reduce_sum(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks, without gradient; `value` is left as it was."""
    total = value.detach().clone(memory_format=torch.contiguous_format)
    add_up(total, group)
    return total


def add_up(values: Tensor, group: dist.ProcessGroup) -> None:
    """Replace contiguous values by their sum over ranks.

    Two processes on CPUs swap their values: gloo's own ring takes twice as long for the small sums of a layer. The sum
    of two is the same to the bit.
    """
    if group.size() == 2 and values.device.type == "cpu":
        peer, others = 1 - group.rank(), torch.empty_like(values)
        works = group.recv([others], peer, 0), group.send([values], peer, 0)
        for work in works:
            work.wait()
        values += others
    elif group.size() > 1:
        dist.all_reduce(values, group=group)


def gather_objects(value: Value, group: dist.ProcessGroup) -> list[Value]:
    """Every rank's `value`, in rank order, on every rank."""
    if group.size() == 1:
        return [value]
    values: list[Any] = [None] * group.size()
    dist.all_gather_object(values, value, group=group)
    return values


def on_first_rank(work: Callable[[], Value], group: dist.ProcessGroup) -> Value | None:
    """Have the group's first rank alone do some work, while the others wait.

    Returns:
        What the work returned; None on other ranks.

    Raises:
        MegatronRetrievalError: on all ranks, of the class that the work raised.
    """
    result, problem = None, None
    if group.rank() == 0:
        try:
            result = work()
        except MegatronRetrievalError as error:
            problem = error
    kind, message = gather_objects((type(problem), str(problem)), group)[0]
    if problem is not None:
        raise problem
    if issubclass(kind, MegatronRetrievalError):
        raised = kind.__new__(kind)
        raised.args = (message,)
        raise raised
    return result


def broadcast_first(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The value of the group's first rank, on every rank; shapes and types must be equal."""
    if group.size() == 1:
        return value
    value = value.contiguous()
    dist.broadcast(value, dist.get_global_rank(group, 0), group=group)
    return value


def any_rank(flag: bool, group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether `flag` is True on any rank; the same on every rank."""
    if group.size() == 1:
        return flag
    return bool(all_reduce_sum(torch.full((), float(flag), device=device), group).item())
