"""Registries name their rows, flags choose among them, and modules from outside add rows before flags are parsed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.config.extensions import extensions_in_files, take_extensions
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.registry import Registry


@dataclass(frozen=True)
class Colour:
    name: str
    about: str


COLOURS: Registry[Colour] = Registry("colour")
RED = COLOURS.add(Colour("red", "the longest wave"))


@dataclass(kw_only=True, frozen=True)
class Job:
    """A job."""

    colour: Annotated[str, OneOf(COLOURS)] = "red"
    """Colour."""


def test_a_row_is_found_by_its_name() -> None:
    assert COLOURS["red"] is RED
    assert next(iter(COLOURS)) == "red"
    with pytest.raises(ValueError, match="'red' is registered already"):
        COLOURS.add(Colour("red", ""))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown colour 'rad'; .*Perhaps you meant 'red'.*--extensions"):
        COLOURS["rad"]


def test_choices_are_those_registered_when_flags_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_colours.py").write_text(
        f"import sys\nrows = sys.modules['{__name__}']\nrows.COLOURS.add(rows.Colour('mauve', 'made in 1856'))\n"
    )
    with pytest.raises(SystemExit):
        parse_config(Job, ["--colour", "mauve"])
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--extensions", "my_colours", "--colour", "mauve"]
    assert parse_config(Job, words).colour == "mauve"
    assert parse_config(Job, words).colour == "mauve", "a module is imported once"
    config = tmp_path / "job.yaml"
    config.write_text("colour: mauve\nextensions: [my_colours]\n")
    assert parse_config(Job, ["--config", str(config)]).colour == "mauve"
    with pytest.raises(SystemExit):
        parse_config(Job, ["--help"])
    printed = capsys.readouterr().out
    assert "{red,mauve}" in printed
    assert "mauve: made in 1856" in printed


def test_an_extension_is_a_module_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "an_extension_file.py"
    file.write_text("")
    assert take_extensions(["--a", "1", "--extensions", str(file), "json", "--b"]) == ["--a", "1", "--b"]
    with pytest.raises(ConfigError, match="--extensions no_such_module: cannot be imported"):
        take_extensions(["--extensions=no_such_module"])
    with pytest.raises(ConfigError, match=r"--extensions needs the name"):
        take_extensions(["--extensions", "--b"])


def test_extensions_of_a_configuration_file_are_known_before_it_is_parsed(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("colour: red\nextensions: [mine.py, other]\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    words = ["--config", str(config), f"--config={tmp_path / 'broken.yaml'}", "--config", "no-such-file.yaml"]
    assert extensions_in_files(words) == ["--extensions", "mine.py", "other"]
    assert extensions_in_files(["--colour", "red"]) == []
    assert extensions_in_files([]) == []


@pytest.mark.parametrize("content", ["def broken(:", "raise ValueError('taken')"])
def test_an_extension_that_fails_is_refused_with_a_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a_failing_extension.py"
    file.write_text(content)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"a_failing_extension\.py: cannot be imported"):
            take_extensions(["--extensions", str(file)])
        assert "a_failing_extension" not in sys.modules


def test_a_file_with_the_name_of_another_module_leaves_that_alone(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match="another module is called json"):
        take_extensions(["--extensions", str(tmp_path / "json.py")])
    assert sys.modules["json"] is json
