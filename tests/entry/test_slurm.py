"""The SLURM script goes back into the queue as long as the run is not finished, and not for ever where it fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "scontrol": 'if [[ $1 == show ]]; then echo node0; else echo "$@" >> "$CALLS"; fi',
    # two nodes of two processes; only the last one is run
    "srun": 'shift; SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_NNODES=2 "$@"',
    "python": 'echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR" >> "$CALLS"\n'
    'if [[ -n $RECORD ]]; then mkdir -p run; echo "$RECORD" > run/run_record.json; fi; exit "$STATUS"',
}


@pytest.mark.parametrize(
    ("record", "status", "restarts", "requeued", "ends_with"),
    [
        ('{"finished": true}', 0, 0, False, 0),
        ('{"finished": false}', 0, 9, True, 0),
        ("", 1, 0, True, 0),  # killed before there was a record
        ("", 1, 3, False, 1),
    ],
    ids=["finished", "stopped", "failed", "failed again and again"],
)
def test_job(tmp_path: Path, record: str, status: int, restarts: int, requeued: bool, ends_with: int) -> None:
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    settings = {"CALLS": str(calls), "RECORD": record, "STATUS": str(status), "SLURM_RESTART_COUNT": str(restarts)}
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"}
    environment = {**os.environ, **settings, **job, "PATH": f"{programs}:{os.environ['PATH']}"}
    words = ["bash", str(ROOT / "examples" / "slurm_train.sh"), "run", "pretrain_ict.py"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == ends_with, result.stderr
    seen = calls.read_text().splitlines()
    assert seen[0] == "3 4 1 2 node0"
    assert seen[1:] == (["requeue 7"] if requeued else [])
