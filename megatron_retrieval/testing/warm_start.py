"""Programs as `python` and `torchrun` run them, forked from a process that has imported the libraries already.

A start then takes a fraction of the seconds that importing torch and megatron-core takes.
"""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from torch._C._distributed_c10d import TCPStore
from torch.multiprocessing import _prctl_pr_set_pdeathsig as end_with_parent  # type: ignore[attr-defined]

from megatron_retrieval.testing.spawn import rank_environment, warm_fork_server

#: how long ranks may take to end; torchrun gives them 30 seconds
TERMINATE_SECONDS = 10.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


class WarmProgram:
    """A program in the background, with the methods of `subprocess.Popen` that tests use.

    Args:
        words: the command line behind `python`: a file or `-m` and a module, then flags; `TORCHRUN` and a number
            before them stand for so many ranks.
        cwd: the folder it runs in.
        env: all of its environment.
        stdout: the file that its standard output is appended to.
        stderr: the same for its standard error.
    """

    def __init__(self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: Path, stderr: Path) -> None:
        settings = (list(words), str(cwd), dict(env), str(stdout), str(stderr))
        self._process = warm_fork_server().Process(target=_become, args=settings)
        self._process.start()
        self.pid: int = self._process.ident or 0

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the program runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once the program has ended.

        Raises:
            TimeoutError: after `timeout` seconds; the program goes on.
        """
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise TimeoutError(f"process {self.pid} has not ended within {timeout} seconds")
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, not to what it started."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End the program at once."""
        self._process.kill()


def _become(words: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    """Turn this process into the program."""
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell has put in the background ignore it
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    if tuple(words[: len(TORCHRUN)]) == TORCHRUN:
        _run_ranks(words[len(TORCHRUN) + 1 :], int(words[len(TORCHRUN)]))
    else:
        _run(words)


def _run(words: list[str]) -> None:
    """Do as `python WORDS`."""
    libraries = [place for place in sys.path if place.startswith((sys.prefix, sys.base_prefix))]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    module = words[1] if words[0] == "-m" else None
    sys.argv = words if module is None else words[1:]
    folder = Path(words[0]).resolve().parent if module is None else Path.cwd()
    sys.path[:] = [str(folder), *filter(None, given), *libraries]
    try:
        if module is None:
            _run_file(words[0])
        else:
            sys.modules.pop(module, None)  # imported already, of which runpy would warn
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without


def _run_file(path: str) -> None:
    """Run a file as the main module, in which the processes that it starts look up functions and classes."""
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    main.__spec__ = None
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    spec.loader.exec_module(main)


def _run_ranks(words: list[str], num_ranks: int) -> None:
    """Do as `torchrun --nproc-per-node NUM_RANKS WORDS`: the first rank that fails ends the others, and SIGTERM is
    handed on."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_run_rank, args=(words, rank, num_ranks, port)) for rank in range(num_ranks)]
    for process in ranks:
        process.start()
    # after the forks: it has a thread
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    signal.signal(signal.SIGTERM, lambda number, frame: _end(ranks))
    while alive := [process for process in ranks if process.exitcode is None]:
        wait([process.sentinel for process in alive])
        failed = [rank for rank, process in enumerate(ranks) if process.exitcode]
        if failed:
            status = ranks[failed[0]].exitcode
            _end(ranks)
            sys.exit(f"rank {failed[0]} ended with status {status}")
    del store


def _end(ranks: Sequence[ForkProcess]) -> None:
    """End those that still run; the ones that do not hear it are killed."""
    for process in ranks:
        process.terminate()
    deadline = time.monotonic() + TERMINATE_SECONDS
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()


def _run_rank(words: list[str], rank: int, num_ranks: int, port: int) -> None:
    end_with_parent(signal.SIGKILL)
    os.environ.update(rank_environment(rank, num_ranks, port))
    _run(words)
