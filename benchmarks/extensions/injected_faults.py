"""Faults for `fault_injection.py`: with `--extensions` this file breaks its program, as INJECTED_FAULT says."""

from __future__ import annotations

import builtins
import io
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch

from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.training.trainer import Trainer

#: no example of the tiny data has it
UNUSED_TOKEN = 1


class _Ill:
    """A training step that goes wrong from one iteration to another."""

    def __init__(self, step: Any, harm: Callable[[Any, dict[str, Any]], None], first: int, last: int, *, before: bool):
        self.model, self._step, self._harm, self._range = step.model, step, harm, range(first, last + 1)
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def forward_backward(self, batch: Any, iteration: int, loss_scale: float) -> dict[str, Any]:
        if self._before and iteration in self._range:
            self._harm(self.model, {})
        metrics = dict(self._step.forward_backward(batch, iteration, loss_scale))
        if not self._before and iteration in self._range:
            self._harm(self.model, metrics)
        return metrics


def _embedding(model: Any) -> Any:
    return next(p for name, p in model.named_parameters() if "word_embeddings" in name and p.requires_grad)


def values(place: str, value: str, first: str, last: str) -> None:
    """NaN or inf in the loss, a gradient, or a weight (of a token that is used, or of one that is not)."""

    def harm(model: Any, metrics: dict[str, Any]) -> None:
        if place == "loss":
            metrics["loss"] = metrics["loss"] * float(value)
        elif place == "gradient":
            _embedding(model).main_grad[UNUSED_TOKEN, 0] = float(value)
        else:
            with torch.no_grad():
                _embedding(model)[UNUSED_TOKEN if place == "unused" else slice(None), 0] = float(value)

    _make_ill(harm, first, last, before=place in ("weight", "unused"))


def stop(rank: str, iteration: str) -> None:
    """A rank stops as under SIGSTOP."""
    if os.environ.get("RANK") == rank:
        _make_ill(lambda model, metrics: os.kill(os.getpid(), signal.SIGSTOP), iteration, iteration, before=True)


def vectors(value: str, call: str) -> None:
    """NaN or inf in a passage's vector when evidence is embedded for so-and-so-manieth time."""
    encode, calls = DualEncoder.encode_passages, iter(range(1 << 30))

    def harmed(self: DualEncoder, *args: Any, **kwargs: Any) -> Any:
        encoded = encode(self, *args, **kwargs)
        if not torch.is_grad_enabled() and next(calls) == int(call):
            encoded[0, 0] = float(value)
        return encoded

    DualEncoder.encode_passages = harmed  # type: ignore[method-assign]


def clock(seconds: str) -> None:
    """The clock of the system is set forwards (or back)."""
    real = time.time
    time.time = lambda: real() + float(seconds)


def slow(seconds: str) -> None:
    """Every look at the file system takes a while."""

    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*args: Any, **kwargs: Any) -> Any:
            time.sleep(float(seconds))
            return function(*args, **kwargs)

        return wait

    builtins.open = io.open = delayed(io.open)  # type: ignore[assignment]
    for name in ("stat", "listdir", "scandir", "replace", "rename", "unlink"):
        setattr(os, name, delayed(getattr(os, name)))


def blind(rank: str, seconds: str, folder: str) -> None:
    """A rank does not see what was written a moment ago below a folder, as with the cache of a network file system."""
    if os.environ.get("RANK", "0") != rank:
        return
    real = os.stat

    def is_new(path: Any) -> bool:
        if not isinstance(path, str | os.PathLike) or folder not in str(path):
            return False
        try:
            return time.time() - real(path).st_ctime < float(seconds)
        except OSError:
            return False

    def unseen(function: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any, *args: Any, **kwargs: Any) -> Any:
            mode = args[0] if args else kwargs.get("mode", "r")
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and is_new(path):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return function(path, *args, **kwargs)

        return look

    builtins.open = io.open = unseen(io.open)  # type: ignore[assignment]
    os.stat = unseen(os.stat)  # type: ignore[assignment]


def _make_ill(harm: Callable[[Any, dict[str, Any]], None], first: str | int, last: str | int, *, before: bool) -> None:
    begin = Trainer.__init__

    def ill(self: Trainer, **settings: Any) -> None:
        step = _Ill(settings.pop("step"), harm, int(first), int(last), before=before)
        begin(self, step=step, **settings)  # type: ignore[arg-type]

    Trainer.__init__ = ill  # type: ignore[method-assign]


_name, *_words = os.environ["INJECTED_FAULT"].split()
{function.__name__: function for function in (values, stop, vectors, clock, slow, blind)}[_name](*_words)
