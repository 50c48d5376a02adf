"""Keeps an embedding process running beside training: reports its end and starts it again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence

import torch

from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.utils.logging import get_logger

#: deaths in a row without progress, after which a request is given up
MAX_FAILURES = 4
#: before the second start; it doubles from start to start
PAUSE_SECONDS = 1.0
STOP_SECONDS = 10.0
#: what makes a process one of a job; a worker is a job of its own
_JOB_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_")

log = get_logger("index")


class WorkerSupervisor:
    """Starts a worker and looks after it; nothing here waits but `stop`.

    A worker that ends is reported with the end of its log and started again, after a pause. One that keeps ending
    without having made a further file is left alone until something else is asked for, and the request is given up.

    Args:
        command: the program with its settings; `--worker` and `--parent-pid` are added.
        versions: where the worker takes its requests from and puts its log.
        worker: its number.
        device: it sees this GPU only; on the CPU nothing is set.
        timeout_seconds: a worker that writes nothing for this long counts as hung and is killed.
        clock: seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        versions: IndexVersions,
        worker: int,
        device: torch.device,
        *,
        timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        # the request, how far it had come, and since when
        self._seen: tuple[IndexRequest | None, int, float] = (None, 0, clock())
        self._command = [*command, "--worker", str(worker), "--parent-pid", str(os.getpid())]
        self._versions, self._worker, self._clock = versions, worker, clock
        self._environment = _worker_environment(device)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start, self._not_before = 0, clock()
        self._failures, self._has_given_up = 0, False
        # the request and how far it had come when the worker ended last
        self._progress: tuple[IndexRequest | None, int] = (None, -1)

    def look(self) -> None:
        """Start the worker if it should run and does not; to be called often."""
        if self._process is not None:
            status = self._process.poll()
            if status is None and not self._hangs():
                return
            if status is None:
                self._process.kill()  # it may be stopped, and then hears nothing else
                self._process.wait()
            self._process = None
            self._report(
                "was killed: it added nothing for too long" if status is None else f"ended with status {status}"
            )
        if self._has_given_up and self._versions.requested() in (None, self._progress[0]):
            return
        if self._clock() >= self._not_before:
            self._start()

    def stop(self) -> None:
        """End the worker; it can be killed at any moment."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _start(self) -> None:
        self._has_given_up = False
        self._seen = (None, 0, self._clock())
        path = self._versions.worker_log(self._worker)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            self._log_start = file.tell()
            # in a session of its own: a stop signal to the job is for the trainer, which ends its workers itself
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def _hangs(self) -> bool:
        """Whether something is asked for and has not come any further for too long."""
        request, now = self._versions.requested(), self._clock()
        progress = (request, self._versions.num_bytes(request.iteration) if request else 0)
        if request is None or progress != self._seen[:2]:
            self._seen = (*progress, now)
        return now - self._seen[2] >= self._timeout_seconds

    def _report(self, end: str) -> None:
        request = self._versions.requested()
        progress = (request, self._versions.num_bytes(request.iteration) if request else 0)
        self._failures = 1 if progress != self._progress else self._failures + 1
        self._progress, self._has_given_up = progress, self._failures >= MAX_FAILURES
        pause = PAUSE_SECONDS * 2 ** (self._failures - 1)
        self._not_before = self._clock() + (0 if self._has_given_up else pause)
        outlook = f"it is started again in {pause:.0f} s"
        if self._has_given_up:
            outlook = f"after {self._failures} times without progress it is not started for this version again"
            if request is not None:
                self._versions.give_up(request)
        log.warning(
            "embedding worker %d %s; %s, training goes on with the index that it has. Its last words "
            "in %s:\n%s",
            self._worker, end, outlook, self._versions.worker_log(self._worker), self._last_words(),
        )  # fmt: skip

    def _last_words(self, num_lines: int = 12) -> str:
        """The end of what the worker said since its last start."""
        lines: list[str] = []
        with contextlib.suppress(FileNotFoundError), self._versions.worker_log(self._worker).open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        return "\n".join(f"    {line}" for line in lines[-num_lines:]) or "    (nothing)"


def _worker_environment(device: torch.device) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_JOB_VARIABLES)}
    if device.type == "cuda":
        number = device.index or 0
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    return environment
