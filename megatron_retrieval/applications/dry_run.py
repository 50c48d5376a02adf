"""What a command would do: its settings, the inputs that are missing, what a step takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_retrieval.applications.training_estimate import training_estimate
from megatron_retrieval.config.marks import resuming
from megatron_retrieval.config.parser import flat_fields, parse_config
from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.training.run import TrainingConfig

#: settings that name what a command writes
_WRITTEN = ("output", "output-dir", "save")
#: settings that name what may be there: a run that is continued, a folder beside the output
_MAYBE = ("load", "index-dir")
#: settings of words that name files where no mark says so
_READ = ("input", "corpus")
#: the variable that names a file with the paths that the commands of a script before this one write, a line each
MADE_BEFORE = "DRY_RUN_MADE"


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a command would do.

    Attributes:
        settings: all of them, with the keys that flags and YAML have.
        missing: flag and path of inputs that are not there and that no command before makes.
        to_come: those that a command before makes.
        written: what the command writes.
        estimate: what training takes, a line each; empty for other commands.
    """

    settings: dict[str, Any]
    missing: list[tuple[str, Path]]
    to_come: list[tuple[str, Path]]
    written: list[Path]
    estimate: list[str]

    def lines(self, name: str) -> Iterator[str]:
        """For a person to read; the settings are YAML that `--config` reads back."""
        yield f"# {name}"
        yield yaml.safe_dump(self.settings, sort_keys=False).rstrip()
        yield from (f"# {line}" for line in self.estimate)
        yield from (f"# --{flag} {path}: made by a command before" for flag, path in self.to_come)
        yield from (f"# MISSING: --{flag} {path}" for flag, path in self.missing)
        yield ""


def dry_run(config_class: type[Any], words: Sequence[str], made_before: Sequence[Path], num_processes: int) -> DryRun:
    """Resolve a command's settings and look for its inputs, without doing its work.

    Args:
        made_before: what the commands of a script before this one write.
        num_processes: over all machines.

    Raises:
        ConfigError, CheckpointError, DataError: settings that contradict each other, or an input that is damaged.
        SystemExit: an unknown flag.
    """
    config = parse_config(config_class, words, read_artefacts=False)
    absent = [(flag, path) for flag, path in _inputs(config) if not path.exists()]
    if not absent:  # only now what stands in them can be read
        config = parse_config(config_class, words)
    training = getattr(config, "training", None)
    return DryRun(
        settings={flag: value for flag, _, value in flat_fields(config)},
        missing=[named for named in absent if not _is_made(named[1], made_before)],
        to_come=[named for named in absent if _is_made(named[1], made_before)],
        written=[Path(value) for flag, _, value in flat_fields(config) if flag in _WRITTEN and value],
        estimate=training_estimate(config, training, num_processes) if isinstance(training, TrainingConfig) else [],
    )


def made_before() -> list[Path]:
    """What the commands of a script before this one write, as `remember` has noted it."""
    notes = os.environ.get(MADE_BEFORE)
    return [Path(line) for line in Path(notes).read_text(encoding="utf-8").splitlines()] if notes else []


def remember(written: Sequence[Path]) -> None:
    """Note what this command would write for those after it."""
    if notes := os.environ.get(MADE_BEFORE):
        with Path(notes).open("a", encoding="utf-8") as file:
            file.writelines(f"{path}\n" for path in written)


def _is_made(path: Path, made: Sequence[Path]) -> bool:
    return any(path == folder or path.is_relative_to(folder) for folder in made)


def _inputs(config: Any) -> Iterator[tuple[str, Path]]:
    """Flag and path of everything that a configuration reads."""
    for flag, field, value in flat_fields(config):
        if flag in (*_WRITTEN, *_MAYBE) or value is None:
            continue
        is_path = "Path" in str(field.type)
        if is_path or flag in _READ or resuming(field) in ("input", "held-out input"):
            values = value if isinstance(value, list) else [value]
            yield from ((flag, Path(item)) for item in values)


def run_dry(name: str, config_class: type[Any], words: Sequence[str]) -> bool:
    """Print what a command would do; returns whether all its inputs are there or made before.

    A mistake in its settings is printed in place of what it would do. Of several ranks the first one prints.
    """
    if os.environ.get("RANK", "0") != "0":  # torchrun sets it
        return True
    try:
        found = dry_run(config_class, words, made_before(), int(os.environ.get("WORLD_SIZE", "1")))
    except MegatronRetrievalError as error:
        sys.stdout.write(f"# {name}\n# WRONG: {error}\n\n")
        return False
    sys.stdout.write("\n".join(found.lines(name)) + "\n")
    remember(found.written)
    return not found.missing
