"""Every job reads YAML by the same rules: unknown keys are refused by line, flags win over the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jobs import ROOT, Job, all_jobs

from megatron_retrieval.applications.reproduce import REGISTRY
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.errors import ConfigError

every_job = pytest.mark.parametrize("job", [job for job in all_jobs() if job.flags], ids=lambda job: job.name)


@every_job
def test_a_misspelt_key_is_refused_with_the_nearest(job: Job, tmp_path: Path) -> None:
    flag = max(job.flags, key=len)
    path = tmp_path / "job.yaml"
    path.write_text(f"# comment\n{flag}s: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"job\.yaml:2: unknown key '{flag}s'\. Perhaps you meant '{flag}'"):
        parse_config(job.config, ["--config", str(path)])


@every_job
def test_a_misspelt_flag_ends_with_status_2(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    flag = max(job.flags, key=len)
    words = ["a question"] if "question" in job.flags else ["a folder"] if job.name == "learn" else []
    with pytest.raises(SystemExit) as stopped:
        parse_config(job.config, [*words, f"--{flag}s", "1"])
    assert stopped.value.code == 2
    assert f"--{flag}" in capsys.readouterr().err


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    job = next(job for job in all_jobs() if job.name == "build_evidence")
    path = tmp_path / "job.yaml"
    path.write_text("input: [a.tsv, b.tsv]\noutput: from_file\nvocab-file: vocab.txt\nworkers: 3\n", encoding="utf-8")
    config = parse_config(job.config, ["--config", str(path), "--output", "from_flag"])
    assert (config.output, config.workers, config.input) == ("from_flag", 3, ("a.tsv", "b.tsv"))


@pytest.mark.parametrize(
    "path", sorted({*(ROOT / "examples").glob("*.yaml")} - {ROOT / REGISTRY}), ids=lambda path: path.name
)
def test_shipped_settings_belong_to_a_job(path: Path) -> None:
    keys = {str(key).replace("_", "-") for key in yaml.safe_load(path.read_text(encoding="utf-8"))}
    assert any(keys <= set(job.flags) for job in all_jobs()), f"no job knows all of {sorted(keys)}"
