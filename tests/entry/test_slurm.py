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
    "srun": 'while [[ $1 == --* ]]; do echo "$1" >> "$CALLS"; shift; done\n'
    'SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_NNODES=2 "$@"',
    "python": 'echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR" >> "$CALLS"\n'
    'if [[ -n $RECORD ]]; then mkdir -p run; echo "$RECORD" > run/run_record.json; fi; exit "$STATUS"',
}
LATEST = Path("run/checkpoints/latest_checkpointed_iteration.txt")


@pytest.mark.parametrize(
    ("record", "status", "failures", "does"),
    [
        ('{"finished": true}', 0, "", []),
        ('{"finished": false}', 0, "50\n50\n50\n", ["requeue 7"]),
        ("", 1, "", ["requeue 7"]),  # killed before there was a record
        ("", 1, "50\n50\n", ["requeuehold 7"]),
        ("", 1, "40\n40\n", ["requeue 7"]),  # there is a newer checkpoint than at the earlier failures
        ("", 1, "40\n50\n", ["requeue 7"]),
    ],
    ids=["finished", "stopped", "failed", "failed again and again", "failed later", "failed twice"],
)
def test_job(tmp_path: Path, record: str, status: int, failures: str, does: list[str]) -> None:
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    for name, text in {LATEST: "50\n", Path("run/logs/failures"): failures}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    settings = {"CALLS": str(calls), "RECORD": record, "STATUS": str(status)}
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"}
    environment = {**os.environ, **settings, **job, "PATH": f"{programs}:{os.environ['PATH']}"}
    words = ["bash", str(ROOT / "examples" / "slurm_train.sh"), "run", "pretrain_ict.py"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    *flags, ranks = calls.read_text().splitlines()[: 3 + 1]
    assert "--output=run/logs/job-%j-rank-%t.log" in flags
    assert ranks == "3 4 1 2 node0"
    assert calls.read_text().splitlines()[4:] == does
