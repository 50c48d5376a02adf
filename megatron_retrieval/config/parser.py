"""The only argument parser of the project: dataclasses in, one typed value out.

A job is a keyword-only dataclass whose fields are settings or further dataclasses, each standing beside the class
that it configures. Every leaf is one flag, hyphenated and without prefix; `--config FILE` reads the same keys from
YAML, and flags on the command line win over the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import tyro
import yaml

from megatron_retrieval.config.choices import describe_choices
from megatron_retrieval.config.config_files import expand_config_files, flag_words
from megatron_retrieval.config.extensions import loaded_extensions, take_extensions
from megatron_retrieval.config.marks import former_name, is_later
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.files import atomic_file
from megatron_retrieval.utils.logging import get_logger

Config = TypeVar("Config")
_log = get_logger("config")

_COMMON_FLAGS = """--config FILE.yaml reads the same keys from YAML, --config NAME those of a recipe; flags come first.
--extensions MODULE ... imports modules (or .py files) of your own, which add objectives, losses, encoders, readers or
data formats to those that are listed here.
--dry-run does nothing: it prints the settings, which inputs are missing, and what training takes."""


def parse_config(
    config_class: type[Config],
    args: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    read_artefacts: bool = True,
) -> Config:
    """Parse the command line (and the YAML files that `--config` names) into `config_class`.

    Args:
        config_class: a keyword-only dataclass, possibly nested.
        args: the words after the program's name; default: those of this process.
        prog: the program's name in `--help`.
        read_artefacts: False: artefacts that flags name need not exist; settings that stand in them have the defaults
            of their class, and flags of other classes are left out.

    Raises:
        ConfigError: a YAML file has an unknown key or is no mapping.
        SystemExit: a flag is unknown (the nearest ones are shown), missing or of the wrong type (status 2).
    """
    words = take_extensions(list(sys.argv[1:] if args is None else args))
    words = expand_config_files(words, lambda: _yaml_keys(config_class))
    words = _with_new_names(words, former_names(config_class))
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)(config_class)
    description = "\n\n".join(
        part for part in (config_class.__doc__, _COMMON_FLAGS, describe_choices(_annotations(config_class))) if part
    )
    has_artefact = hasattr(config_class, "with_artefact_defaults")
    first_words = _without(words, _artefact_flags(config_class)) if has_artefact else words
    config: Config = tyro.cli(flat, args=first_words, prog=prog, description=description)
    if read_artefacts and isinstance(config, HasArtefactDefaults):
        resolved = config.with_artefact_defaults()
        if first_words != words:  # only now it is known which class they belong to
            final: Config = tyro.cli(flat, args=words, prog=prog, description=description, default=resolved)
        else:
            final = _with_given(resolved, config, _given_flags(words))
        _hand_on(config, final)
        return final
    return config


def config_of(config_class: type[Config], **settings: Any) -> Config:
    """A configuration of settings by their flags' names, with `_` for `-`; parsed and checked as flags are.

    Args:
        settings: None: not given.

    Raises:
        ConfigError: a setting is unknown (the nearest is named), missing or of the wrong type.
    """
    known = {flag.replace("-", "_"): flag for flag in _yaml_keys(config_class)}
    for name in settings:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"there is no setting {name!r}." + (f" Perhaps you meant {nearest[0]!r}." * len(nearest)))
    given = ((known[name], value) for name, value in settings.items() if value is not None)
    words = [word for flag, value in given for word in flag_words(flag, value)]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return parse_config(config_class, words)
    except SystemExit as error:
        text = re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]", "", complaint.getvalue())  # without colours and boxes
        raise ConfigError(" ".join(text.split())) from error


@runtime_checkable
class HasArtefactDefaults(Protocol):
    """A job some of whose defaults stand in an artefact that a flag names, such as a checkpoint's shape."""

    def with_artefact_defaults(self) -> Any:
        """This configuration with those settings filled in; flags that were given win over them.

        What it reads of artefacts stands in cached properties, which the configuration that is used takes over.
        """
        ...


def _hand_on(source: Any, target: Any) -> None:
    """Give `target` the cached properties that `source` has read, in nested configurations as well."""
    names = {field.name for field in dataclasses.fields(source)}
    vars(target).update({name: value for name, value in vars(source).items() if name not in names})
    for name in names:
        theirs, mine = getattr(source, name), getattr(target, name)
        if dataclasses.is_dataclass(theirs) and type(mine) is type(theirs):
            _hand_on(theirs, mine)


def _given_flags(words: Sequence[str]) -> set[str]:
    """The flags of a command line, without dashes; of `--no-x` also x."""
    flags = {word.partition("=")[0][2:].replace("_", "-") for word in words if word.startswith("--")}
    return flags | {flag.removeprefix("no-") for flag in flags}


def _with_given(resolved: Any, config: Any, given: set[str]) -> Any:
    """`resolved` with the settings of `config` that flags gave."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        theirs, mine = getattr(resolved, field.name), getattr(config, field.name)
        if dataclasses.is_dataclass(mine):
            is_same = type(theirs) is type(mine)
            values[field.name] = _with_given(theirs, mine, given) if is_same else theirs
        elif field.name.replace("_", "-") in given:
            values[field.name] = mine
    return dataclasses.replace(resolved, **values)


def field_flags(config_class: type) -> Iterator[tuple[str, type, dataclasses.Field[Any]]]:
    """Yield (flag without dashes, owning dataclass, field) for every leaf of a nested config."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from field_flags(_nested_class(field, hints[field.name]))
        else:
            yield field.name.replace("_", "-"), config_class, field


def former_names(config_class: type) -> dict[str, str]:
    """Former names of flags and the flags that they stand for, without dashes."""
    fields = ((flag, former_name(field)) for flag, _, field in field_flags(config_class))
    return {former: flag for flag, former in fields if former is not None}


def _with_new_names(words: Sequence[str], former: Mapping[str, str]) -> list[str]:
    """A command line in which flags have their names of today."""
    renamed = []
    for word in words:
        name, equals, value = word.partition("=")
        flag = former.get(name[2:].replace("_", "-")) if name.startswith("--") else None
        if flag is not None:
            _log.info("%s is called --%s now; the old name goes with the next version.", name, flag)
        renamed.append(word if flag is None else f"--{flag}{equals}{value}")
    return renamed


def _yaml_keys(config_class: type) -> set[str]:
    flags = {flag for flag, _, _ in field_flags(config_class)}
    return flags | _artefact_flags(config_class) | former_names(config_class).keys()


def _nested_class(field: dataclasses.Field[Any], hint: Any) -> type:
    """The class of a nested config: that of its default where the field is of a more general one."""
    factory = field.default_factory
    return factory if isinstance(factory, type) and issubclass(factory, hint) else typing.cast(type, hint)


def _artefact_flags(config_class: type) -> set[str]:
    """The flags of nested configs whose class an artefact decides, of all classes that they may be of; none where the
    default's is the only class."""
    flags: set[str] = set()
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if not dataclasses.is_dataclass(hint := hints[field.name]):
            continue
        nested = _nested_class(field, hint)
        others = [other for other in _subclasses(typing.cast(type, hint)) if not issubclass(other, nested)]
        if nested is not hint and others:
            flags |= {flag for variant in (nested, *others) for flag, _, _ in field_flags(variant)}
        else:
            flags |= _artefact_flags(nested)
    return flags


def _subclasses(config_class: type) -> Iterator[type]:
    subclass: type
    for subclass in config_class.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _without(words: Sequence[str], flags: Set[str]) -> list[str]:
    """A command line without some flags and their values."""
    kept, keep = [], True
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("_", "-")
            keep = name not in flags and name.removeprefix("no-") not in flags
        if keep:
            kept.append(word)
    return kept


def _annotations(config_class: type) -> Iterator[tuple[str, Any]]:
    """Yield (flag without dashes, annotation with its extras) for every leaf of a nested config."""
    for flag, owner, field in field_flags(config_class):
        yield flag, typing.get_type_hints(owner, include_extras=True)[field.name]


def flat_fields(config: Any) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield (flag without dashes, field, value in the types of YAML and JSON) for every leaf of a configuration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat_fields(value)
        else:
            yield field.name.replace("_", "-"), field, _plain(value)


def to_flat_dict(config: Any) -> dict[str, Any]:
    """The resolved settings as `flag name -> value`, the keys that YAML uses."""
    return {flag: value for flag, _, value in flat_fields(config)}


def _plain(value: Any) -> Any:
    """A setting in the types that YAML and JSON have."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_flat_dict(
    config_class: type[Config], flat: Mapping[str, Any], classes: Mapping[type, type] = MappingProxyType({})
) -> Config:
    """The inverse of `to_flat_dict`; keys that the class does not have are left alone.

    Args:
        classes: of nested configs, by the more general ones that fields are of; default: those of their defaults.

    Raises:
        KeyError: a setting is missing that has always been there.
    """
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            nested = classes.get(typing.cast(type, hint)) or _nested_class(field, hint)
            values[field.name] = from_flat_dict(nested, flat, classes)
        else:
            name = field.name.replace("_", "-")
            value = field.default if is_later(field) and name not in flat else flat[name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def overlaid(config: Config, given: Any) -> Config:
    """`config` with those settings of `given` that it has too; a setting that is None is not given."""
    shared = {name: value for name, value in to_flat_dict(given).items() if value is not None}
    return from_flat_dict(type(config), {**to_flat_dict(config), **shared})


def write_config(config: Any, path: str | Path) -> None:
    """Write the resolved settings, and the extensions that they need, as YAML that `--config` reads back."""
    extensions = {"extensions": list(loaded_extensions())} if loaded_extensions() else {}
    with atomic_file(path) as file:
        yaml.safe_dump({**to_flat_dict(config), **extensions}, file, sort_keys=False)
