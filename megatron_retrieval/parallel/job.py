"""A job whose last processes do not train: they learn only whether training has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

_ENDED = "training-has-ended"


class Job:
    """The key-value store that all processes of a job share.

    Attributes:
        store: for the process group of the training ranks.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.store = PrefixStore("training", store)

    @classmethod
    def join(cls, timeout: timedelta) -> Job:
        """Connect to the other processes that torchrun started."""
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        return cls(store)

    def has_ended(self) -> bool:
        """Whether training has ended or failed; for the ranks that do not train."""
        try:
            return self._store.check([_ENDED])
        except RuntimeError:  # the process that holds the store has ended
            return True

    @contextlib.contextmanager
    def training(self, rank: int) -> Iterator[None]:
        """Wrap training: it counts as ended when rank 0 leaves the block, or when the block fails on any rank."""
        has_failed = True
        try:
            yield
            has_failed = False
        finally:
            if has_failed or rank == 0:
                with contextlib.suppress(RuntimeError):
                    self._store.set(_ENDED, "1")
