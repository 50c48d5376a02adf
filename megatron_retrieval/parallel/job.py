"""A job of which the last processes do something else: they know when the others have ended, and nothing more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

_ENDED = "training-has-ended"


class Job:
    """The store through which all processes of a job reach one another.

    Attributes:
        store: for the process group of those that train.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.store = PrefixStore("training", store)

    @classmethod
    def join(cls, timeout: timedelta) -> Job:
        """Meet the other processes that torchrun started."""
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        return cls(store)

    def has_ended(self) -> bool:
        """Whether training has ended, in whatever way; asked by those that stand beside it."""
        try:
            return self._store.check([_ENDED])
        except RuntimeError:  # nobody keeps the store any more
            return True

    @contextlib.contextmanager
    def training(self, rank: int) -> Iterator[None]:
        """Training is what happens in this block; it has ended when rank 0 leaves it, or when it fails on any rank."""
        has_failed = True
        try:
            yield
            has_failed = False
        finally:
            if has_failed or rank == 0:
                with contextlib.suppress(RuntimeError):
                    self._store.set(_ENDED, "1")
