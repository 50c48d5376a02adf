"""The server under load over loopback: many clients, hostile input, a kill, a stop.

Clients and server share the machine, so that its throughput is a lower bound. Every client keeps its connection, as
browsers do, and asks one question after another.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from megatron_retrieval.applications.serve.config import ServeConfig
from megatron_retrieval.config.checks import Checked, PositiveFloat, PositiveInt
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.testing.hostile_requests import hostile_request
from megatron_retrieval.utils.files import write_json

PATIENCE_SECONDS = 300.0
REQUEST_SECONDS = 120.0
HEADERS = {"Content-Type": "application/json"}
_MEGABYTE = 1 << 20


@dataclass(kw_only=True, frozen=True)
class ServerLoadConfig(Checked):
    """Measure what the server bears; flags of what is served are those of `megatron-retrieval serve`."""

    serve: ServeConfig
    """What is served, and how."""
    questions: Path
    """Questions to ask, in turn."""
    clients: PositiveInt = 50
    """Clients at the same time."""
    seconds: PositiveFloat = 60.0
    """Duration under load; one client alone gets a sixth of it."""
    hostile: PositiveInt = 500
    """Requests with hostile input."""
    output: Path | None = None
    """JSON file of the figures; default: they are only printed."""


@dataclass
class Tally:
    """What clients saw.

    Attributes:
        seconds: of each request that was answered with status 200.
        failures: kinds of those that were not.
    """

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def row(self, name: str, elapsed: float) -> dict[str, Any]:
        """The figures of a phase."""
        p50, p99 = np.quantile(self.seconds, [0.5, 0.99]) if self.seconds else (float("nan"),) * 2
        return {
            "phase": name,
            "requests": len(self.seconds),
            "failed": dict(self.failures),
            "per_second": len(self.seconds) / elapsed,
            "p50_seconds": float(p50),
            "p99_seconds": float(p99),
        }


class Server:
    """A server process at a port that it keeps over restarts."""

    def __init__(self, config: ServeConfig, folder: Path) -> None:
        self._settings = folder / "serve.yaml"
        write_config(config, self._settings)
        self.port = config.port
        self.start()

    def start(self) -> None:
        """Start it, and return when it listens and has opened everything."""
        words = [sys.executable, "-m", "megatron_retrieval", "serve", "--config", str(self._settings)]
        self.process = subprocess.Popen([*words, "--port", str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().strip()
        if not address:
            raise MegatronRetrievalError("The server did not start; its message stands above.")
        self.port = int(address.rpartition(":")[2])

    def health(self) -> dict[str, Any]:
        """What it says of itself."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        connection.request("GET", "/health")
        return dict(json.loads(connection.getresponse().read()))

    def megabytes(self) -> float:
        """Its memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / _MEGABYTE


def main(config: ServerLoadConfig) -> None:
    questions = [question.text for question in read_questions(config.questions)]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(config.serve, Path(folder))
        try:
            figures = _measure(config, server, questions)
        finally:
            server.process.kill()
            server.process.wait()
    if config.output is not None:
        write_json(config.output, figures)
    sys.stdout.write(_report(figures))


def _measure(config: ServerLoadConfig, server: Server, questions: Sequence[str]) -> dict[str, Any]:
    path = "/answer" if config.serve.answering.reader is not None else "/search"
    phases = []
    tally, elapsed = ask_for(config.seconds / 6, 1, server.port, path, questions)
    phases.append(tally.row("one at a time", elapsed))
    before, memory = server.health(), [server.megabytes()]
    tally, elapsed = ask_for(
        config.seconds,
        config.clients,
        server.port,
        path,
        questions,
        each_second=lambda: memory.append(server.megabytes()),
    )
    after = server.health()
    phases.append(tally.row(f"{config.clients} clients", elapsed))
    with ThreadPoolExecutor(8) as pool:  # some wait until the server gives up waiting for them
        statuses = Counter(pool.map(partial(hostile_request, server.port), range(config.hostile)))
    alive = server.process.poll() is None and server.health()["status"] == "ok"
    restart = _restart_under_load(config, server, path, questions)
    return {
        "path": path,
        "num_passages": after["num_passages"],
        "load_average": psutil.getloadavg()[0],
        "cores": psutil.cpu_count(),
        "phases": phases,
        "questions_per_batch": (after["num_questions"] - before["num_questions"])
        / max(1, after["num_batches"] - before["num_batches"]),
        "megabytes": [round(value, 1) for value in memory],
        "hostile": {str(status): count for status, count in sorted(statuses.items(), key=str)},
        "alive_after_hostile": alive,
        **restart,
    }


def ask_for(
    seconds: float,
    clients: int,
    port: int,
    path: str,
    questions: Sequence[str],
    *,
    each_second: Callable[[], None] = lambda: None,
    retries: bool = False,
) -> tuple[Tally, float]:
    """Have clients ask for so long; returns what they saw, and the seconds until the last was answered.

    Args:
        retries: a connection that is refused or breaks is tried again, and is no failure.
    """
    tally, end, numbers = Tally(), time.monotonic() + seconds, itertools.count()
    started = time.monotonic()

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
        while time.monotonic() < end:
            body = json.dumps({"question": questions[next(numbers) % len(questions)]})
            begun = time.monotonic()
            try:
                connection.request("POST", path, body, HEADERS)
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException) as error:
                connection.close()
                if not retries:
                    tally.failures[type(error).__name__] += 1
                time.sleep(0.1)
                continue
            if answer.status == 200:
                tally.seconds.append(time.monotonic() - begun)
            else:
                tally.failures[str(answer.status)] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        each_second()
    return tally, time.monotonic() - started


def _restart_under_load(
    config: ServerLoadConfig, server: Server, path: str, questions: Sequence[str]
) -> dict[str, Any]:
    """Kill it while clients ask, start it again at the same port, then stop it with a signal while they ask."""
    seconds = {}

    def kill_and_start() -> None:
        time.sleep(3)
        server.process.kill()
        server.process.wait()
        begun = time.monotonic()
        server.start()
        seconds["until it answers again"] = time.monotonic() - begun

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    tally, _ = ask_for(3 + PATIENCE_SECONDS / 10, config.clients, server.port, path, questions, retries=True)
    killer.join()
    stopper = threading.Timer(3, server.process.send_signal, [signal.SIGTERM])
    stopper.start()
    stopped, _ = ask_for(5, config.clients, server.port, path, questions)
    refused = {"ConnectionRefusedError", "RemoteDisconnected", "ConnectionResetError", "BrokenPipeError"}
    return {
        "restart_seconds": seconds["until it answers again"],
        "failed_around_the_restart": dict(tally.failures),
        "answered_around_the_restart": len(tally.seconds),
        "failed_at_the_stop": {name: n for name, n in stopped.failures.items() if name not in refused},
        "exit_status_at_the_stop": server.process.wait(PATIENCE_SECONDS),
    }


def _report(figures: dict[str, Any]) -> str:
    rows = [
        [one["phase"], one["requests"], sum(one["failed"].values()), f"{one['per_second']:.1f}",
         f"{1000 * one['p50_seconds']:.0f}", f"{1000 * one['p99_seconds']:.0f}"]
        for one in figures["phases"]
    ]  # fmt: skip
    header = [figures["path"], "answered", "failed", "a second", "p50 ms", "p99 ms"]
    memory = figures["megabytes"]
    others = {name: value for name, value in figures.items() if name not in ("phases", "megabytes", "path")}
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in others.items()]
    quarter = memory[len(memory) // 4]
    lines.append(f"megabytes: {memory[0]:.0f} at first, {quarter:.0f} after a quarter, {memory[-1]:.0f} at last")
    return f"{text_table(header, rows)}\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_program(ServerLoadConfig, main)
