"""Files that an earlier version wrote are opened, and give what they gave to that version.

Every case is a command with the flags of that version, run on a copy of the artefacts; see the README beside them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ARTEFACTS = ROOT / "tests" / "data" / "written_by_3ef333c"
EXPECTED: dict[str, dict[str, Any]] = json.loads((ARTEFACTS / "expected.json").read_text())
#: what is kept of a command's output
KEPT: dict[str, Callable[[Path], list[Any]]] = runpy.run_path(str(ARTEFACTS / "write.py"))["KEPT"]

#: what that version did without being told; the default follows the machine since
TOLD = {"tools/embed_evidence.py": ["--dtype", "fp32"]}


def _program(words: list[str], folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(folder)
    sys.argv = [str(ROOT / words[0]), *words[1:]]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.mark.parametrize("name", EXPECTED)
def test_old_files_give_what_they_gave(name: str, tmp_path: Path) -> None:
    shutil.copytree(ARTEFACTS, tmp_path / "old")
    words = EXPECTED[name]["command"].format(out=tmp_path / "out").split()
    words += TOLD.get(words[0], [])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megatron_retrieval.testing.preload"])
    process = context.Process(target=_program, args=(words, tmp_path / "old"))
    process.start()
    process.join()
    assert process.exitcode == 0
    found, expected = KEPT[EXPECTED[name]["kept"]](tmp_path / "out"), EXPECTED[name]["result"]
    assert len(found) == len(expected)
    for row, expected_row in zip(found, expected, strict=True):
        assert [value for value in row if not isinstance(value, float)] == [
            value for value in expected_row if not isinstance(value, float)
        ]
        numbers = [value for value in expected_row if isinstance(value, float)]
        assert [value for value in row if isinstance(value, float)] == pytest.approx(numbers, rel=1e-4, abs=1e-5)
