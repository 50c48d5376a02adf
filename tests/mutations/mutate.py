"""Changes one line of the package at a time, in a copy, and runs the tests that should notice.

    python tests/mutations/mutate.py                        everything: about half an hour of one core
    python tests/mutations/mutate.py training index         the tables of these names
    python tests/mutations/mutate.py --containing dropout   what has this word in its file or in what it says

The tables name a line by its text, so that they survive edits elsewhere; a test checks that each text is there once.
The status is 1 where fewer are noticed than there should be.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

import pytest
from tables import (
    ALWAYS_FAILS,
    BROKEN,
    NOTICED,
    PACKAGE,
    ROOT,
    SURVIVED,
    TIMED_OUT,
    Mutation,
    Outcome,
    read_tables,
    report,
)

PRELOAD = f"{PACKAGE}.testing.preload"
#: of pytest, which would compile their modules anew for each mutation
PLUGINS = ("hypothesis", "_hypothesis_pytestplugin", "hypothesis.extra.pytestplugin")
#: for all tests that noticed, together
CONFIRM_SECONDS = 3600.0


def copy_tree(folder: Path) -> None:
    """The working tree, without what git ignores; compiled files are told from stale ones by their content."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / PACKAGE, quiet=1, invalidation_mode=mode)


def import_libraries(folder: Path) -> None:
    """Import what the package imports, and forget the package: each mutation imports it anew, in a child."""
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    os.chdir(folder)
    sys.path[0] = str(folder)
    for name in (*PLUGINS, PRELOAD):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def run_tests(tests: Iterable[str], log: Path, limit_seconds: float) -> int | None:
    """Run tests in a child until the first one fails.

    Returns:
        pytest's status; None where it takes too long, and is killed with all that it started.
    """
    pid = os.fork()
    if pid == 0:
        _be_pytest(tests, log)
    deadline, status = time.monotonic() + limit_seconds, None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.05)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return status
    if status is None:
        os.waitpid(pid, 0)
    return status


def _be_pytest(tests: Iterable[str], log: Path) -> None:
    """Turn this process into pytest."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.modules["__main__"] = importlib.import_module("pytest.__main__")  # processes that it starts import that
    util.spawnv_passfds = _fork_for_fork_server(util.spawnv_passfds)
    words = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", f"{log}.d"]
    status = 70
    try:
        importlib.import_module(PRELOAD)  # the fork server has it then
        forkserver.ensure_running()
        status = int(pytest.main([*words, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def _fork_for_fork_server(spawn: Any) -> Any:
    """The fork server of the tests as a fork of this process, not as a program that imports everything once more."""

    def start(path: bytes, words: Sequence[str], kept: Sequence[int]) -> int:
        if "forkserver" not in words[-1] or len(kept) != 2:
            return int(spawn(path, words, kept))
        if pid := os.fork():
            return pid
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in kept:
                try:
                    os.close(int(name))
                except OSError:  # that of the folder just listed
                    continue
        forkserver.main(kept[0], kept[1], [])
        os._exit(0)

    return start


def try_mutation(mutation: Mutation, folder: Path, limit_seconds: float) -> Outcome:
    """Run its tests with the change, and take it back."""
    path, log, started = folder / PACKAGE / mutation.file, folder / "pytest.log", time.monotonic()
    text = path.read_text()
    path.write_text(mutation.apply(text))
    try:
        status = run_tests(mutation.words(), log, limit_seconds)
    finally:
        path.write_text(text)
    result = {0: SURVIVED, 1: NOTICED, None: TIMED_OUT}.get(status, BROKEN)
    by = _failed(log)[0] if result == NOTICED else ""
    return Outcome(mutation, result, round(time.monotonic() - started, 1), by)


def confirm(outcomes: Sequence[Outcome], folder: Path, limit_seconds: float) -> list[Outcome]:
    """The outcomes, where what noticed is to pass without a change."""
    log, tests = folder / "pytest.log", sorted({outcome.by for outcome in outcomes if outcome.by})
    status = run_tests(["--maxfail=0", *tests], log, limit_seconds) if tests else 0
    if status not in (0, 1):
        sys.exit(f"the tests that noticed do not run to their end without a change:\n{log.read_text()[-2000:]}")
    failed = set(_failed(log)) if status else set()
    return [replace(outcome, result=ALWAYS_FAILS) if outcome.by in failed else outcome for outcome in outcomes]


def _failed(log: Path) -> list[str]:
    """The tests that failed, in order."""
    text = log.read_text(errors="replace")
    return re.findall(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", text, re.MULTILINE)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="*", help="names of tables; default: all")
    parser.add_argument("--containing", default="", help="only mutations with this text in their file or description")
    parser.add_argument("--limit-seconds", type=float, default=180, help="time for the tests of one mutation")
    parser.add_argument("--results", type=Path, help="keeps outcomes; what it holds already is not run again")
    settings = parser.parse_args()
    chosen = [m for m in read_tables(settings.areas) if settings.containing in f"{m.file} {m.what}"]
    known = _known(settings.results, chosen)
    # no TemporaryDirectory: programs that tests fork run what is to be done at exit, and would remove it
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    try:
        copy_tree(folder)
        import_libraries(folder)
        for mutation in chosen:
            if mutation in known:
                continue
            known[mutation] = outcome = try_mutation(mutation, folder, settings.limit_seconds)
            _say(f"{outcome.seconds:6.1f} s  {outcome.result}: {mutation.file}, {mutation.what}  {outcome.by}")
            if settings.results:
                with settings.results.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
        # a test that fails in any case notices nothing
        outcomes = confirm([known[mutation] for mutation in chosen], folder, CONFIRM_SECONDS)
    finally:
        shutil.rmtree(folder)
    if not outcomes:
        sys.exit("no mutation is chosen")
    table, is_enough = report(outcomes)
    _say(table)
    return 0 if is_enough else 1


def _known(results: Path | None, chosen: Sequence[Mutation]) -> dict[Mutation, Outcome]:
    """What an earlier start found out about these mutations."""
    lines = results.read_text().splitlines() if results and results.exists() else []
    outcomes = [Outcome(**{**entry, "mutation": Mutation(**entry["mutation"])}) for entry in map(json.loads, lines)]
    return {outcome.mutation: outcome for outcome in outcomes if outcome.mutation in chosen}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
