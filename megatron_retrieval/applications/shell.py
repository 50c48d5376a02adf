"""What a shell needs of this program: the settings of recipes as files, and completion of its words."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import shtab
import tyro

from megatron_retrieval.config.choices import registry_of
from megatron_retrieval.config.config_files import shipped_settings
from megatron_retrieval.config.parser import field_flags
from megatron_retrieval.config.verbs import PROGRAM, VERBS, Verb
from megatron_retrieval.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class SettingsConfig:
    """Print the settings of a recipe as YAML, to be changed and given to --config: config NAME > my.yaml."""

    name: tyro.conf.Positional[str] = ""
    """Which recipe; default: all are listed."""


@dataclass(kw_only=True, frozen=True)
class CompletionConfig:
    """Print what a shell needs to complete commands, flags and their choices; keep it where the shell looks for it, as
    in ~/.local/share/bash-completion/completions/megatron-retrieval."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "tcsh"]] = "bash"
    """Of which shell."""


def print_settings(config: SettingsConfig) -> None:
    """Print one recipe's file as it is, or the list."""
    shipped = shipped_settings()
    if not config.name:
        width = max(map(len, shipped))
        sys.stdout.write("".join(f"{name:{width}}  {_about(path)}\n" for name, path in shipped.items()))
    elif config.name in shipped:
        sys.stdout.write(shipped[config.name].read_text(encoding="utf-8"))
    else:
        raise ConfigError(f"{config.name!r} is no recipe; choose one of {', '.join(shipped)}.")


def _about(path: Path) -> str:
    """The first clause of the comment at a file's head."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<!\bal)[.:;](?: |$)", " ".join(line.strip("# ") for line in lines))[0]


def print_completion(config: CompletionConfig) -> None:
    """Print the completion script of a shell."""
    sys.stdout.write(shtab.complete(_parser(), shell=config.shell) + "\n")


def _parser() -> argparse.ArgumentParser:
    """All verbs with their flags, in the form from which completion is made."""
    root = argparse.ArgumentParser(prog=PROGRAM)
    root.add_argument("--version", action="store_true")
    firsts = root.add_subparsers()
    seconds: dict[str, Any] = {}
    for verb in VERBS:
        first, _, second = verb.name.partition(" ")
        if second and first not in seconds:
            seconds[first] = firsts.add_parser(first, help=verb.group).add_subparsers()
        words = (seconds[first] if second else firsts).add_parser(second or first, help=verb.about)
        _add_flags(words, verb)
    return root


def _add_flags(parser: argparse.ArgumentParser, verb: Verb) -> None:
    _, config, _ = verb.load()
    parser.add_argument("--config", metavar="FILE").complete = shtab.FILE  # type: ignore[attr-defined]
    for flag, owner, field in field_flags(config):
        hint = typing.get_type_hints(owner, include_extras=True)[field.name]
        if "Positional" in str(field.type):
            parser.add_argument(field.name, nargs="?", choices=_values(verb, field.name, hint))
        elif hint is bool or bool in typing.get_args(hint):
            parser.add_argument(f"--{flag}", f"--no-{flag}", action="store_true")
        else:
            number = "*" if "tuple" in str(field.type) else None
            action = parser.add_argument(f"--{flag}", nargs=number, choices=_choices(hint))
            if "Path" in str(field.type) or flag.endswith(("-data", "-file", "-path", "-dir", "-checkpoint")):
                action.complete = shtab.FILE  # type: ignore[attr-defined]


def _values(verb: Verb, name: str, hint: Any) -> tuple[str, ...] | None:
    return tuple(shipped_settings()) if (verb.name, name) == ("config", "name") else _choices(hint)


def _choices(hint: Any) -> tuple[str, ...] | None:
    """The values that a setting may have, where they are few."""
    if (registry := registry_of(hint)) is not None:
        return tuple(registry)
    parts = [hint, *typing.get_args(hint)]
    values = next((typing.get_args(part) for part in parts if typing.get_origin(part) is Literal), None)
    return None if values is None else tuple(map(str, values))
