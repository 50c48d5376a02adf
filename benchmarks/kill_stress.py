"""Work of every kind, killed at random moments and started again until its result is there.

The result must be that of work which nobody interrupted: equal bytes of what is built, equal losses and weights of what
is trained; where other numbers of ranks resume, equal losses up to rounding. Nothing may be left behind: no process, no
half-written file. Models and data are tiny, and programs are forked from a warm process, so that most kills meet work.
"""

from __future__ import annotations

import contextlib
import filecmp
import math
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from megatron_retrieval.checkpoint.store.folders import LATEST_NAME
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import MegatronRetrievalError, MismatchError
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.testing.kinds_of_work import (
    NO_DROPOUT,
    PATIENCE_SECONDS,
    Kind,
    ends_within,
    kinds_of_work,
    losses,
    require_success,
    said,
)
from megatron_retrieval.testing.warm_start import WarmProgram
from megatron_retrieval.utils.files import read_json
from megatron_retrieval.utils.manifest import MANIFEST
from megatron_retrieval.utils.progress import progress_bar

#: what tells of the work, not of its result
RECORDS = {"config.yaml", "run_record.json"}
#: of losses, where the number of ranks changed
TOLERANCE = 1e-3
#: numbers of processes: any, with each start
MIXED = "mixed"
#: what is killed: the launcher, with which all must end; the launcher, by the signal that asks; a rank or an embedder
WAYS = ("all", "SIGTERM", "one process")


@dataclass(kw_only=True, frozen=True)
class KillStressConfig(Checked):
    """Kill every kind of work at random moments, and compare what it resumes to."""

    kills: PositiveInt = 200
    """Kills in all."""
    kills_of_one: PositiveInt = 5
    """A result is let alone after so many: where most of a short run is its start, a kill wastes it."""
    kinds: tuple[str, ...] = ()
    """Only kinds of work whose names begin with one of these words."""
    seed: int = 0
    """Of the moments, the ways and the numbers of processes."""


class Stress:
    """Makes results under kills.

    Attributes:
        kills, results: of each kind of work, by way and by how results were compared.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random, self._made = folder, random.Random(seed), 0
        self.kills: dict[str, Counter[str]] = defaultdict(Counter)
        self.results: dict[str, Counter[str]] = defaultdict(Counter)
        #: folder and seconds of work that nobody interrupted
        self._whole: dict[tuple[str, int | str], tuple[Path, float]] = {}

    def make(self, kind: Kind, max_kills: int) -> int:
        """Make a result of a kind under kills, and compare it; returns how often it was killed."""
        number: int | str = 1 if kind.is_single else self._random.choice((1, 2, MIXED))
        whole, seconds = self._whole_of(kind, number)
        self._made += 1
        folder, kills = self._folder / f"result-{self._made}", 0
        while kind.trains or not (folder / MANIFEST).exists():  # else it was killed when all was done
            ranks = self._random.randint(1, 2) if number == MIXED else int(number)
            program: WarmProgram | None = kind.start(folder, ranks, _flags(kind, number))
            while kills < max_kills:
                if ends_within(program, self._random.uniform(0, seconds)):
                    break
                kills += self._kill(program, self._random.choice(WAYS), kind, folder)
                if program.poll() is not None:
                    program = None
                    break
            if program is not None:
                require_success(program, folder)
                break
        is_rounded = kind.trains and number == MIXED
        _require_equal(kind, whole, folder, tolerance=TOLERANCE if is_rounded else 0.0)
        self.results[kind.name]["rounded" if is_rounded else "equal"] += 1
        return kills

    def _kill(self, program: WarmProgram, way: str, kind: Kind, folder: Path) -> int:
        """Kill a program, or a process of it; 0 where it has ended before."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            family = psutil.Process(program.pid).children(recursive=True)
            ranks = [] if kind.is_own_launcher else _ranks(psutil.Process(program.pid))
            single = [member for member in family if member in ranks or _is_embedder(member)]
            if way == "one process" and single:
                victim = self._random.choice(single)
                goes_on = _is_embedder(victim)  # it is started again
                victim.kill()
            else:
                way, goes_on = "all" if way == "one process" else way, False
                program.send_signal(signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)
            if not goes_on and (left := _left(program, family)):
                program.kill()
                raise MegatronRetrievalError(f"{kind.name}, {way}: {left} is left behind.\n{said(folder)[-3000:]}")
            self.kills[kind.name][way] += 1
            return 1
        return 0

    def _whole_of(self, kind: Kind, number: int | str) -> tuple[Path, float]:
        if (kind.name, number) not in self._whole:
            folder, started = self._folder / f"whole-{len(self._whole)}", time.monotonic()
            require_success(kind.start(folder, 1 if number == MIXED else int(number), _flags(kind, number)), folder)
            self._whole[kind.name, number] = folder, time.monotonic() - started
        return self._whole[kind.name, number]


def main(config: KillStressConfig) -> None:
    with tempfile.TemporaryDirectory() as name, progress_bar("kills", "kills", config.kills) as progress:
        kinds = [kind for kind in kinds_of_work(Path(name)) if not config.kinds or kind.name.startswith(config.kinds)]
        stress, number = Stress(Path(name), config.seed), 0
        while progress.n < config.kills:
            left = config.kills - int(progress.n)
            progress.update(stress.make(kinds[number % len(kinds)], min(config.kills_of_one, left)))
            number += 1
    rows = [_row(kind.name, stress.kills[kind.name], stress.results[kind.name]) for kind in kinds]
    sys.stdout.write(text_table(["", "kills", *WAYS, "equal results", "equal up to rounding"], rows) + "\n")


def _row(name: str, kills: Counter[str], results: Counter[str]) -> list[str]:
    numbers = [kills.total(), *(kills[way] for way in WAYS), results["equal"], results["rounded"]]
    return [name, *map(str, numbers)]


def _flags(kind: Kind, number: int | str) -> tuple[str, ...]:
    return NO_DROPOUT if kind.trains and number == MIXED else ()


def _ranks(launcher: psutil.Process) -> list[psutil.Process]:
    """The processes that a launcher has started, without other programs such as the git that a run record asks."""
    return [child for child in launcher.children() if child.exe() == launcher.exe()]


def _is_embedder(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("index_worker" in word for word in process.cmdline())
    return False


def _left(program: WarmProgram, family: list[psutil.Process]) -> str:
    """What does not end by itself; a process that only waits to be counted as dead has ended."""
    if not ends_within(program, PATIENCE_SECONDS):
        return f"the program, process {program.pid},"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while alive := [process for process in family if _is_alive(process)]:
        if time.monotonic() > deadline:
            return str(alive[0])
        time.sleep(0.05)
    return ""


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _require_equal(kind: Kind, whole: Path, resumed: Path, *, tolerance: float) -> None:
    """Raises MismatchError: the results differ, or something half-written is left."""
    left = [path for path in resumed.rglob(".*") if not any(part.startswith("version-") for part in path.parts)]
    left += [*resumed.parent.glob(f".{resumed.name}.*"), *resumed.parent.glob(f"{resumed.name}.partial")]
    if left:
        raise MismatchError(f"{kind.name}: {left[0]} is left behind.")
    if not kind.trains:
        _require_equal_files(whole, resumed)
        return
    expected, found = losses(whole), losses(resumed)
    pairs = zip(expected, found, strict=False)
    are_close = all(math.isclose(*pair, rel_tol=tolerance, abs_tol=tolerance) for pair in pairs)
    if len(expected) != len(found) or not are_close:
        raise MismatchError(f"{kind.name}: {resumed} has losses {found}, {whole} has {expected}.")
    if not tolerance:
        last = Path("checkpoints") / f"iter_{int((whole / 'checkpoints' / LATEST_NAME).read_text()):07d}"
        for shard in (whole / last).rglob("*.safetensors"):
            _require_same(shard, resumed / last / shard.relative_to(whole / last))


def _require_equal_files(whole: Path, resumed: Path) -> None:
    names, others = ({file.name for file in folder.iterdir()} - RECORDS for folder in (whole, resumed))
    if names != others:
        raise MismatchError(f"{resumed} does not hold the files of {whole}: {sorted(names ^ others)}.")
    for name in names:
        _require_same(whole / name, resumed / name)


def _require_same(path: Path, other: Path) -> None:
    is_manifest = path.name == MANIFEST
    if not (_timeless(path) == _timeless(other) if is_manifest else filecmp.cmp(path, other, shallow=False)):
        raise MismatchError(f"{other} differs from {path}.")


def _timeless(manifest: Path) -> dict[str, Any]:
    return {name: value for name, value in read_json(manifest).items() if name != "created"}


if __name__ == "__main__":
    run_program(KillStressConfig, main)
