"""What a user sees of each fault, and that nothing good is lost by it: one line a fault, over tiny models and data.

A fault meets work as it runs (`extensions/injected_faults.py`, or a disk that is full or read-only) or a file that work
reads. The same command without the fault must then end in the result of undisturbed work.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.config.checks import Checked
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import MegatronRetrievalError
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
    start_program,
)
from megatron_retrieval.testing.warm_start import WarmProgram
from megatron_retrieval.utils.files import file_fingerprint

SHIM = ("--extensions", Path(__file__).parent / "extensions" / "injected_faults.py")
SHORT = ("--distributed-timeout-minutes", "0.1")
#: what tells of the work, not of its result
RECORDS = {"config.yaml", "run_record.json", "manifest.json"}


@dataclass(kw_only=True, frozen=True)
class FaultInjectionConfig(Checked):
    """Inject every fault, and print what a user sees of it."""

    faults: tuple[str, ...] = ()
    """Only faults whose names begin with one of these words."""


@dataclass(frozen=True)
class Outcome:
    """What came of a fault.

    Attributes:
        seen: the status of the program and what it said of the fault.
        afterwards: what the same command makes without the fault.
    """

    seen: str
    afterwards: str


class Scene:
    """Work, and the results that it has where nothing disturbs it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._made = folder, 0
        self.kinds = {kind.name: kind for kind in kinds_of_work(folder)}
        self._whole: dict[str, Path] = {}

    def new_folder(self) -> Path:
        self._made += 1
        return self.folder / f"result-{self._made}"

    def flags(self, kind: Kind) -> tuple[str, ...]:
        """Without dropout, which ranks draw for themselves, results do not depend on the number of ranks."""
        return NO_DROPOUT if kind.trains else ()

    def whole(self, kind: Kind) -> Path:
        """The folder of undisturbed work."""
        if kind.name not in self._whole:
            self._whole[kind.name] = self.new_folder()
            require_success(kind.start(self._whole[kind.name], 1, self.flags(kind)), self._whole[kind.name])
        return self._whole[kind.name]

    def again(self, kind: Kind, folder: Path, num_processes: int = 1) -> str:
        """Let disturbed work be done without the fault, and compare."""
        program = kind.start(folder, num_processes, self.flags(kind))
        if not ends_within(program, PATIENCE_SECONDS) or program.poll():
            return f"FAILS: {last_words(folder)}"
        return "equal result" if self._is_equal(kind, folder, num_processes) else "ANOTHER RESULT"

    def _is_equal(self, kind: Kind, folder: Path, num_processes: int) -> bool:
        whole = self.whole(kind)
        if kind.trains:
            found, expected = losses(folder), losses(whole)
            far = [1 for a, b in zip(found, expected, strict=False) if abs(a - b) > (1e-3 if num_processes > 1 else 0)]
            return len(found) == len(expected) and not far
        return _contents(folder) == _contents(whole)


@dataclass(frozen=True)
class Disturbed:
    """Work is disturbed by a shim, see `extensions/injected_faults.py`.

    Attributes:
        goes_on: it is not compared with undisturbed work, since it ends by itself, with a step left out.
    """

    kind: str
    fault: str
    num_processes: int = 1
    goes_on: bool = False

    def run(self, scene: Scene) -> Outcome:
        kind, folder = scene.kinds[self.kind], scene.new_folder()
        more = (*scene.flags(kind), *SHIM, *(SHORT if self.fault.startswith("stop") else ()))
        environment = {"INJECTED_FAULT": self.fault.format(folder=folder)}
        program = kind.start(folder, self.num_processes, more, environment)
        seen = _end(program, folder)
        if self.goes_on:
            return Outcome(seen, "goes on")
        return Outcome(seen, scene.again(kind, folder, self.num_processes))


@dataclass(frozen=True)
class Disk:
    """The disk is full after a share of what the work needs, or read-only after a first part of it."""

    kind: str
    shares: tuple[float, ...]

    def run(self, scene: Scene) -> Outcome:
        kind = scene.kinds[self.kind]
        needed = sum(file.stat().st_size for file in scene.whole(kind).rglob("*") if file.is_file())
        seen, afterwards = set(), set()
        for share in self.shares:
            with mounted(scene.new_folder(), max(1, int(share * needed))) as disk:
                folder = disk / "result"
                folder.with_name("result.log").symlink_to(disk.with_name(f"{disk.name}.log"))
                if not share:
                    _mount("-o", "remount,ro", disk)
                seen.add(_end(kind.start(folder, 1, scene.flags(kind)), folder))
                _mount("-o", "remount,rw,size=1g", disk)
                afterwards.add(scene.again(kind, folder))
        return Outcome("; ".join(sorted(seen)), "; ".join(sorted(afterwards)))


@dataclass(frozen=True)
class Flipped:
    """A bit is flipped in a file.

    Attributes:
        kind: what has made it.
        file: its name, with wildcards; of several the last one.
        reader: the command that reads it, with {made} for the folder and {out} for its own; empty: the same work, which
            resumes.
    """

    kind: str
    file: str
    reader: tuple[str, ...] = ()

    def run(self, scene: Scene) -> Outcome:
        kind, made = scene.kinds[self.kind], scene.new_folder()
        shutil.copytree(scene.whole(kind), made)
        path = max(made.glob(self.file))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
        if not self.reader:
            return Outcome(_end(kind.start(made, 1, scene.flags(kind)), made), scene.again(kind, made))
        seen, places = [], {"made": made, "small": scene.folder / "small", "large": scene.folder / "large"}
        for _ in range(2):
            folder = scene.new_folder()
            words = [word.format(out=folder, **places) for word in self.reader]
            seen.append(_end(start_program(words, folder), folder))
            content[len(content) // 2] ^= 0x10
            path.write_bytes(content)
        return Outcome(seen[0], "reads the whole file" if seen[1].startswith("0") else f"FAILS: {seen[1]}")


_EMBED = tuple("tools/embed_evidence.py --evidence {made} --retriever {small}/retriever --output {out}".split())
_VERIFY = ("-m", "megatron_retrieval", "verify", "{made}")
_SEARCH = ("tasks/main.py", "--task", "retriever-evaluate", "--evidence", "{large}/evidence", "--output-dir", "{out}")
_SEARCH += ("--questions", "{small}/biencoder.json")
_BY_VECTORS = (*_SEARCH, "--embeddings", "{made}", "--retriever", "{small}/retriever", "--verify-embeddings")
FAULTS: dict[str, Disturbed | Disk | Flipped] = {
    "NaN in the loss of a step": Disturbed("DPR", "values loss nan 10 10", goes_on=True),
    "NaN in the loss from a step on": Disturbed("DPR", "values loss nan 10 99"),
    "inf in the loss from a step on": Disturbed("reader, fusion", "values loss inf 10 99"),
    "inf in the gradient of a step": Disturbed("ICT", "values gradient inf 10 10", goes_on=True),
    "NaN in the gradient from a step on": Disturbed("reader, extractive", "values gradient nan 10 99"),
    "inf in the gradient from a step on": Disturbed("end to end, in place", "values gradient inf 10 99"),
    "NaN in the weights": Disturbed("DPR", "values weight nan 10 10"),
    "NaN in a weight that no example uses": Disturbed("DPR", "values unused nan 10 10"),
    "NaN in a passage's vector": Disturbed("embed", "vectors nan 7"),
    "inf in a passage's vector, in a refresh": Disturbed("end to end, in place", "vectors inf 2"),
    "a rank is stopped": Disturbed("DPR", "stop 1 10", num_processes=2),
    "a rank is stopped, end to end": Disturbed("end to end, embedding ranks", "stop 1 10", num_processes=2),
    "clock set back by a day": Disturbed("end to end, background", "clock -86400"),
    "slow file system": Disturbed("end to end, background", "slow 0.002"),
    "blind file system": Disturbed("end to end, embedding ranks", "blind 1 1.5 {folder}", 2),
    "disk full: build evidence": Disk("build evidence", (0.02, 0.5, 0.95)),
    "disk full: build corpus": Disk("build corpus", (0.02, 0.5, 0.95)),
    "disk full: build BM25": Disk("build BM25", (0.02, 0.5, 0.95)),
    "disk full: embed": Disk("embed", (0.02, 0.5, 0.95)),
    "disk full: DPR": Disk("DPR", (0.02, 0.3, 0.95)),
    "disk full: end to end": Disk("end to end, in place", (0.02, 0.3, 0.6)),
    "bit flipped: weights": Flipped("DPR", "checkpoints/iter_*/model*.safetensors"),
    "bit flipped: optimizer": Flipped("DPR", "checkpoints/iter_*/optimizer*.safetensors"),
    "bit flipped: checkpoint's manifest": Flipped("DPR", "checkpoints/iter_*/manifest.json"),
    "bit flipped: evidence": Flipped("build evidence", "*.values", _VERIFY),
    "bit flipped: offsets of evidence": Flipped("build evidence", "*.offsets", _VERIFY),
    "bit flipped: evidence's manifest": Flipped("build evidence", "manifest.json", _EMBED),
    "bit flipped: vectors": Flipped("embed", "shard-*.bin", _BY_VECTORS),
    "bit flipped: embeddings' manifest": Flipped("embed", "manifest.json", _BY_VECTORS),
    "bit flipped: BM25": Flipped("build BM25", "data*.npy", _VERIFY),
    "bit flipped: questions": Flipped("end to end, in place", "questions/train/*.values"),
    "bit flipped: index version": Flipped("end to end, in place", "index/version-*/shard-*.bin"),
    "read-only folder: build evidence": Disk("build evidence", (0,)),
    "read-only folder: build BM25": Disk("build BM25", (0,)),
    "read-only folder: embed": Disk("embed", (0,)),
    "read-only folder: DPR": Disk("DPR", (0,)),
    "read-only folder: end to end": Disk("end to end, in place", (0,)),
}


def main(config: FaultInjectionConfig) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scene = Scene(Path(name))
        for fault, cause in FAULTS.items():
            if not config.faults or fault.startswith(config.faults):
                outcome = cause.run(scene)
                rows.append([fault, outcome.seen.replace(name, ""), outcome.afterwards.replace(name, "")])
                sys.stderr.write(" | ".join(rows[-1]) + "\n")
    sys.stdout.write(text_table(["fault", "seen", "afterwards"], rows) + "\n")
    if any(re.search("FAILS|ANOTHER|Traceback|HANGS", " ".join(row)) for row in rows):
        raise MegatronRetrievalError("A fault loses work, or is not said in a sentence.")


@contextlib.contextmanager
def mounted(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of this size, in memory.

    Raises:
        MegatronRetrievalError: this user may not mount one.
    """
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={num_bytes}", "none", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*words: object) -> None:
    result = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise MegatronRetrievalError(f"No disk can be mounted here: {result.stderr.strip()}; run this as root.")


def _end(program: WarmProgram, folder: Path) -> str:
    """The status of a program and its last words."""
    if not ends_within(program, PATIENCE_SECONDS):
        program.kill()
        return f"HANGS: {last_words(folder)}"
    return f"{program.poll()}: {last_words(folder)}"


def last_words(folder: Path) -> str:
    """What the program said of a fault: its error, or its last warning; a traceback's last line."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in said(folder).splitlines()]
    for mark in ("Traceback", "error: ", "skipped", "instead", "makes it again", "warning"):
        if found := [number for number, line in enumerate(lines) if mark in line]:
            return f"Traceback: {lines[-1]}" if mark == "Traceback" else lines[found[-1]]
    return lines[-1] if lines else ""


def _contents(folder: Path) -> dict[str, str]:
    return {file.name: file_fingerprint(file) for file in folder.iterdir() if file.name not in RECORDS}


if __name__ == "__main__":
    run_program(FaultInjectionConfig, main)
