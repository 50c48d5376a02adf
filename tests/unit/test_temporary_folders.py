"""What a killed process left beside its output is removed by the next one; what another is writing is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megatron_retrieval.utils.files import atomic_directory

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from megatron_retrieval.utils.files import atomic_directory
with atomic_directory(sys.argv[1]) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    output, other = tmp_path / "index", tmp_path / "index.2"
    for folder in (output, other):
        subprocess.run([sys.executable, "-S", "-c", KILLED, str(folder)], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_directory(output) as folder, atomic_directory(tmp_path / "beside"):
        (folder / "whole").write_text("whole")
        with atomic_directory(output):
            assert (folder / "whole").exists(), "another process is writing it"
        output.rmdir()
    assert [path.name for path in output.iterdir()] == ["whole"]
    assert len(list(tmp_path.glob(".index.*"))) == 1, "that of another folder stays"
