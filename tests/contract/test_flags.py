"""Flags are unique, documented, shown with their defaults, and change only on purpose."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections import Counter

import pytest
from jobs import ROOT, SURFACE, Job, all_jobs, config_name, program_files, verb_of

from megatron_retrieval.config.checks import Checked, field_bounds
from megatron_retrieval.config.marks import resuming
from megatron_retrieval.config.parser import field_flags, former_names, parse_config
from megatron_retrieval.config.verbs import VERBS

every_job = pytest.mark.parametrize("job", all_jobs(), ids=lambda job: job.name)


def documented_fields(config_class: type) -> set[str]:
    """Fields of the class itself that a docstring follows."""
    (body,) = [node.body for node in ast.parse(textwrap.dedent(inspect.getsource(config_class))).body]  # type: ignore[attr-defined]
    pairs = itertools.pairwise(body)
    return {
        statement.target.id
        for statement, following in pairs
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }


def help_entries(job: Job, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `--help` prints for each flag, in one line."""
    with pytest.raises(SystemExit) as stopped:
        parse_config(job.config, ["--help"])
    assert stopped.value.code == 0
    entries: dict[str, str] = {}
    flag = ""
    for line in re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines():
        start = re.match(r"\W{0,3}--(?!no-)([a-z0-9-]+)", line)  # descriptions stand further to the right
        flag = start[1] if start else flag
        entries[flag] = f"{entries.get(flag, '')} {line.strip('│| ')}"
    return entries


def test_every_program_is_a_job() -> None:
    without = [str(path.relative_to(ROOT)) for path in program_files() if not (config_name(path) or verb_of(path))]
    assert not without, f"{without} call neither run_verb nor run_program nor run_distributed"


def test_what_a_checkout_runs_is_a_verb_of_the_installed_program() -> None:
    """Only examples and benchmarks are programs of their own; what a pip user lacks would be found here."""
    faces = {path: verb_of(path) for path in program_files() if path.parent.name not in ("examples", "benchmarks")}
    names = [verb.name for verb in VERBS]
    assert len(set(names)) == len(names)
    assert {verb for verb in faces.values() if verb in names} == set(faces.values())
    assert {path.name for path in (ROOT / "tasks").glob("*.py")} == {"__init__.py", "main.py"}
    assert {job.verb for job in all_jobs() if job.command[0] == "tasks/main.py"} <= set(names)


@every_job
def test_a_flag_belongs_to_one_field(job: Job) -> None:
    twice = [flag for flag, count in Counter([*job.flags, *former_names(job.config)]).items() if count > 1]
    assert not twice, f"two fields of {job.config.__name__} are --{', --'.join(twice)}"


@every_job
def test_every_flag_is_documented(job: Job) -> None:
    missing = [
        f"{owner.__name__}.{field.name}"
        for _, owner, field in field_flags(job.config)
        if not any(field.name in documented_fields(c) for c in owner.__mro__ if c is not object)
    ]
    assert not missing, f"no docstring under {', '.join(missing)}"


@every_job
def test_every_bound_is_checked(job: Job) -> None:
    owners = {owner for _, owner, _ in field_flags(job.config)}
    unchecked = [owner.__name__ for owner in owners if field_bounds(owner) and not issubclass(owner, Checked)]
    assert not unchecked, f"{unchecked} have bounds: let them inherit Checked"


@every_job
def test_help_shows_every_flag_with_its_default(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    entries = help_entries(job, capsys)
    for flag, _, field in field_flags(job.config):
        if "Positional" not in str(field.type):
            assert re.search(r"\((default|required)\b", entries.get(flag, "")), f"--{flag}: {entries.get(flag)!r}"


@every_job
def test_a_resumed_run_compares_files_by_contents_or_not_at_all(job: Job) -> None:
    """A path says nothing of what is read, and where a run writes to does not matter."""
    if "load" in job.flags:
        unmarked = [
            flag for flag, _, field in field_flags(job.config) if "Path" in str(field.type) and not resuming(field)
        ]
        assert not unmarked, f"--{', --'.join(unmarked)}: mark the field as INPUT, HELD_OUT or FREE"


@every_job
def test_the_surface_is_as_pinned(job: Job) -> None:
    path = SURFACE / f"{job.name}.txt"
    pinned = path.read_text(encoding="utf-8") if path.exists() else ""
    advice = "If that is meant, run `python tests/contract/jobs.py`, read the diff and add it to CHANGELOG.md."
    assert job.surface().splitlines() == pinned.splitlines(), f"the flags of {job.name} changed. {advice}"


def test_no_surface_is_left_of_a_job_that_is_gone() -> None:
    assert {path.stem for path in SURFACE.glob("*.txt")} <= {job.name for job in all_jobs()}
