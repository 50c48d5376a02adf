"""The program lists its verbs, completes them, names the nearest of a misspelt one, and hands recipes out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT, all_jobs

from megatron_retrieval.cli import main
from megatron_retrieval.config.config_files import shipped_settings
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.config.verbs import GROUPS, VERBS


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(words)
    return capsys.readouterr().out


def test_every_verb_is_listed_under_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    listed = printed(capsys, "--help").splitlines()
    for group in GROUPS:
        start = listed.index(f"{group}:") + 1
        names = [verb.name for verb in VERBS if verb.group == group]
        assert [line[2:].split("  ")[0] for line in listed[start : start + len(names)]] == names
    assert "train ict" in printed(capsys, "train")
    assert "embed" not in printed(capsys, "train", "--help")


@pytest.mark.parametrize(("words", "nearest"), [(["trian", "ict"], "train ict"), (["serach", "why"], "search")])
def test_a_misspelt_verb_is_refused_with_the_nearest(words: list[str], nearest: str) -> None:
    with pytest.raises(SystemExit, match=f"is no command. Perhaps you meant '{nearest}'"):
        main(words)


def test_a_shell_completes_verbs_flags_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "completion"
    script.write_text(printed(capsys, "completion", "bash"))
    asked = (("tra", 1), ("train ex", 2), ("train ict --query-in", 3), ("export checkpoint --format hf-d", 4))
    complete = "_shtab_megatron_retrieval; echo ${COMPREPLY[@]}"
    lines = [f"COMP_WORDS=(megatron-retrieval {words}); COMP_CWORD={place}; {complete}" for words, place in asked]
    words = ["bash", "-c", "; ".join([f"source {script}", *lines])]
    replies = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert replies == ["train", "extractive", "--query-in-block-prob", "hf-distilbert hf-dpr hf-dpr-reader"]


def test_recipes_are_found_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in shipped_settings().values()} | {"registry.yaml"} == {
        path.name for path in (ROOT / "examples").glob("*.yaml")
    }
    assert "dpr_reader" in printed(capsys, "config")
    job = next(job for job in all_jobs() if job.verb == "train retriever")
    copy = tmp_path / "mine.yaml"
    copy.write_text(printed(capsys, "config", "dpr"))
    given = ["--vocab-file", "v", "--train-data", "d", "--output-dir", "o", "--config"]
    assert parse_config(job.config, [*given, "dpr"]) == parse_config(job.config, [*given, str(copy)])
    with pytest.raises(SystemExit):
        main(["config", "dbr"])


def test_a_pipe_that_is_closed_ends_nothing_badly() -> None:
    words = f"{sys.executable} -m megatron_retrieval --help | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
