"""Links lead to files; CONTRIBUTING.md names files that exist, floors as they are checked, and walks of ten files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from jobs import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: what a reader can look for: a path with a folder or an ending
PATH = re.compile(r"`((?:[\w*.-]+/)+[\w*.-]*|[\w-]+\.(?:py|md|toml|txt|sh|yaml))`|\]\(([\w./-]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_linked_exist(document: Path) -> None:
    linked = {match[2] for match in PATH.finditer(document.read_text(encoding="utf-8")) if match[2]}
    missing = sorted(path for path in linked if not (document.parent / path).exists())
    assert not missing, f"{document.relative_to(ROOT)} links to {', '.join(missing)}"


def test_files_that_the_map_names_exist() -> None:
    named = {match[1] for match in PATH.finditer(CONTRIBUTING) if match[1]}
    missing = sorted(path for path in named if not any(ROOT.glob(path.rstrip("/"))))
    assert named
    assert not missing, f"CONTRIBUTING.md names {', '.join(missing)}"


def test_the_floors_are_those_that_are_checked() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (floors,) = [contract["layers"] for contract in tools["contracts"] if contract["name"] == "Floors"]
    picture = CONTRIBUTING.split("```")[1].strip().splitlines()
    assert [re.split(r"  +", line)[0] for line in picture] == ["programs", *floors]


def test_a_walk_is_ten_files_and_six_are_read_first() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", CONTRIBUTING, re.MULTILINE)
    assert [number for number, _ in rows] == [str(number) for number in range(1, 11)]
    walks = list(zip(*(re.findall(r"`([^`]+)`", row) for _, row in rows), strict=True))
    assert [len(set(walk)) for walk in walks] == [10, 10, 10]
    first = CONTRIBUTING.split("Six files to read first:")[1].split("Three walks")[0]
    assert len(re.findall(r"^\| `", first, re.MULTILINE)) == 6
