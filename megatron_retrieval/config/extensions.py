"""Code outside of the package that adds rows to its registries: `--extensions MODULE ...`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from megatron_retrieval.errors import ConfigError

FLAG = "--extensions"

_loaded: list[str] = []


def loaded_extensions() -> tuple[str, ...]:
    """The extensions of this process, as they were given; a process that it starts needs the same."""
    return tuple(_loaded)


def extension_words() -> list[str]:
    """The words that give another program the extensions of this one."""
    return [FLAG, *_loaded] if _loaded else []


def take_extensions(words: Sequence[str]) -> list[str]:
    """Import what `--extensions` names on a command line, and return the other words.

    Raises:
        ConfigError: nothing is named, or it cannot be imported.
    """
    others: list[str] = []
    index = 0
    while index < len(words):
        flag, equals, value = words[index].partition("=")
        index += 1
        if flag != FLAG:
            others.append(words[index - 1])
            continue
        names = [value] if equals else []
        while not equals and index < len(words) and not words[index].startswith("--"):
            names.append(words[index])
            index += 1
        if not any(names):
            raise ConfigError(f"{FLAG} needs the name of a module or the path of a .py file.")
        for name in names:
            load_extension(name)
    return others


def extensions_in_files(words: Sequence[str]) -> list[str]:
    """The words that give the extensions which the YAML files behind `--config` name; other faults of these files are
    left to the parser."""
    names: list[str] = []
    for word, following in pairwise([*words, ""]):
        flag, _, value = word.partition("=")
        if flag == "--config":
            with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
                settings = yaml.safe_load(Path(value or following).read_text(encoding="utf-8"))
                names += settings.get("extensions", []) if isinstance(settings, dict) else []
    return [FLAG, *names] if names else []


def load_extension(name: str) -> None:
    """Import a module by its dotted name or the path of its .py file, once.

    Raises:
        ConfigError: it cannot be imported.
    """
    if name in _loaded:
        return
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            importlib.import_module(name)
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{FLAG} {name}: cannot be imported ({error}). Give a module or a .py file; a word that is neither must "
            f"stand before {FLAG} or behind another flag."
        ) from error
    _loaded.append(name)


def _import_file(path: Path) -> None:
    module_name = path.stem
    if (present := sys.modules.get(module_name)) is not None:
        if getattr(present, "__file__", None) != str(path.absolute()):
            raise ImportError(f"another module is called {module_name}; rename the file")
        return
    spec = importlib.util.spec_from_file_location(module_name, path.absolute())
    if spec is None or spec.loader is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(spec)
    with contextlib.ExitStack() as undo:
        sys.modules[module_name] = module  # dataclasses look their annotations up there
        undo.callback(sys.modules.pop, module_name)
        spec.loader.exec_module(module)
        undo.pop_all()
