"""Settings in YAML files: `--config FILE` stands for the flags of the same names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from megatron_retrieval.config.extensions import take_extensions
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.files import read_lines


def shipped_settings() -> dict[str, Path]:
    """The YAML files of the recipes in `examples`, by name; `setup.py` puts them into the package."""
    package = Path(__file__).parents[1]
    folder = next(place for place in (package / "examples", package.parent / "examples") if place.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != "registry"}


def expand_config_files(words: Sequence[str], known: Callable[[], Set[str]]) -> list[str]:
    """Replace every `--config FILE` by the flags that the file stands for, in place; FILE may be the name of a recipe.

    Args:
        known: the keys that a file may have, asked when its extensions are loaded.

    Raises:
        ConfigError: a file is no mapping or has an unknown key, which is named with its line.
    """
    expanded: list[str] = []
    iterator = iter(words)
    for word in iterator:
        name, _, value = word.partition("=")
        if name != "--config":
            expanded.append(word)
            continue
        path = value or next(iterator, "")
        if not path:
            raise ConfigError("--config needs the path of a YAML file.")
        shipped = {} if Path(path).exists() else shipped_settings()
        expanded += _yaml_to_words(shipped.get(path, Path(path)), known)
    return expanded


def _yaml_to_words(path: Path, known: Callable[[], Set[str]]) -> list[str]:
    """The command-line words that a YAML file stands for; unknown keys are refused by name and line."""
    lines = list(read_lines(path))
    try:
        root = yaml.compose("".join(lines), Loader=yaml.SafeLoader)
        settings = yaml.safe_load("".join(lines))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    if root is None or not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected `key: value` lines.")
    take_extensions(flag_words("extensions", settings.pop("extensions", [])) if "extensions" in settings else [])
    keys = known() | {"extensions"}
    key_lines = {node.value: node.start_mark.line + 1 for node, _ in root.value}
    words: list[str] = []
    for key, value in settings.items():
        flag = str(key).replace("_", "-")
        if flag not in keys:
            nearest = difflib.get_close_matches(flag, keys, n=1)
            hint = f" Perhaps you meant {nearest[0]!r}." if nearest else ""
            raise ConfigError(f"{path}:{key_lines.get(str(key), '?')}: unknown key {key!r}.{hint}")
        words += flag_words(flag, value)
    return words


def flag_words(flag: str, value: Any) -> list[str]:
    """The command-line words that give a flag this value."""
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list | tuple):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]
