"""Every job that a user can start, found in the entry points themselves, and the text that pins its flags.

`python tests/contract/jobs.py` writes the files under `surface/` anew; the diff is what users will notice.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

from megatron_retrieval.cli import run_verb
from megatron_retrieval.config.choices import registry_of
from megatron_retrieval.config.marks import resuming
from megatron_retrieval.config.parser import field_flags, former_names
from megatron_retrieval.config.verbs import PROGRAM, VERBS

ROOT = Path(__file__).parents[2]
SURFACE = Path(__file__).parent / "surface"
RUNNERS = ("run_program", "run_distributed")
PROGRAMS = ("pretrain_*.py", "tools/*.py", "examples/*.py", "benchmarks/*.py")


@dataclass(frozen=True)
class Job:
    """One entry point with its configuration."""

    name: str
    command: tuple[str, ...]
    """Words that start it and stand together on a command line."""
    config: type
    verb: str = ""
    """The same as a verb of the installed program."""

    @property
    def commands(self) -> list[tuple[str, ...]]:
        """All ways to start it."""
        return [self.command, *([(PROGRAM, *self.verb.split())] if self.verb else [])]

    @property
    def flags(self) -> list[str]:
        return [flag for flag, _, _ in field_flags(self.config)]

    def surface(self) -> str:
        """One line per flag: name, type, default and marks, in alphabetical order."""
        lines, former = [], {flag: name for name, flag in former_names(self.config).items()}
        for flag, owner, field in field_flags(self.config):
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            registry = registry_of(get_type_hints(owner, include_extras=True)[field.name])
            kind = field.type if registry is None else f"{{{', '.join(registry)}}}"
            resumed = f", resuming: {mark}" if (mark := resuming(field)) else ""
            value = " (required)" if default is MISSING else f" = {default!r}"
            lines.append(
                f"--{flag}: {kind}{value}" + (f", formerly --{former[flag]}" if flag in former else "") + resumed
            )
        return "".join(f"{line}\n" for line in [" ".join(self.command), *sorted(lines)])


@cache
def all_jobs() -> tuple[Job, ...]:
    """What every verb does, called by the name of its program in a checkout where it has one, and the programs that are
    no faces of verbs."""
    tasks = {verb: task for task, verb in _module(ROOT / "tasks" / "main.py").TASKS.items()}
    faces = {verb: path for path in program_files() if (verb := verb_of(path)) is not None}
    jobs = []
    for verb in VERBS:
        name, words = verb.name.replace(" ", "-"), (PROGRAM, *verb.name.split())
        if verb.name in tasks:
            name, words = tasks[verb.name], ("tasks/main.py", "--task", tasks[verb.name])
        elif verb.name in faces:
            name, words = faces[verb.name].stem, (str(faces[verb.name].relative_to(ROOT)),)
        jobs.append(Job(name, words, verb.load()[1], verb.name))
    for path in program_files():
        config = config_name(path)
        if config is not None:
            jobs.append(Job(path.stem, (str(path.relative_to(ROOT)),), getattr(_module(path), config)))
    return tuple(jobs)


def program_files() -> list[Path]:
    """Python files that a user starts directly, other than tasks."""
    return [path for pattern in PROGRAMS for path in sorted(ROOT.glob(pattern))]


def config_name(path: Path) -> str | None:
    """The configuration class that a program hands to its runner; None where there is no such call."""
    return next((ast.unparse(call.args[0]) for call in _calls(path, RUNNERS)), None)


def verb_of(path: Path) -> str | None:
    """The verb that a program is a face of; None where it is none."""
    return next((ast.literal_eval(call.args[0]) for call in _calls(path, (run_verb.__name__,))), None)


def _calls(path: Path, names: tuple[str, ...]) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


@cache
def _module(path: Path) -> ModuleType:
    name = f"contract_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their annotations up there
    sys.path.append(str(path.parent))  # where a program that Python starts finds its neighbours
    spec.loader.exec_module(module)
    return module


def write_surfaces() -> None:
    for stale in SURFACE.glob("*.txt"):
        stale.unlink()
    for job in all_jobs():
        (SURFACE / f"{job.name}.txt").write_text(job.surface(), encoding="utf-8")


if __name__ == "__main__":
    write_surfaces()
