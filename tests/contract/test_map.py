"""CONTRIBUTING.md and README.md name files that exist, floors as they are checked, and walks of ten files."""

from __future__ import annotations

import re
import tomllib

import pytest
from jobs import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: what a reader can look for: a path with a folder or an ending
PATH = re.compile(r"`((?:[\w*.-]+/)+[\w*.-]*|[\w-]+\.(?:py|md|toml|txt|sh|yaml))`|\]\(([\w./-]+)\)")


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md"])
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    linked = {match[2] for match in PATH.finditer(text) if match[2]}
    named = {match[1] for match in PATH.finditer(text) if match[1]} if document == "CONTRIBUTING.md" else set()
    missing = [path for path in linked | named if not any(ROOT.glob(path.rstrip("/")))]
    assert linked | named
    assert not missing, f"{document} names {', '.join(sorted(missing))}"


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
