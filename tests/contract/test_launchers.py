"""Every launcher's dry run: each command resolves, and what it misses are the inputs that the script's user gives."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from jobs import ROOT, all_jobs

from megatron_retrieval.applications.dry_run import dry_run

#: words of each script; capitals are folders that are not there
LAUNCHERS = {
    "pretrain_ict.sh": ["TEXT", "MODEL", "OUTPUT"],
    "pretrain_mss.sh": ["EVIDENCE", "RETRIEVER", "READER", "OUTPUT"],
    "mss_real_data.sh": ["dev-articles", "DATA", "MODEL", "OUTPUT"],
    "retro_real_data.sh": ["DATA", "SMOLLM", "MINILM", "OUTPUT"],
    "finetune_dpr.sh": ["webquestions", "DATA", "MODEL", "OUTPUT"],
    "finetune_reader.sh": ["nq", "fusion", "DATA", "RETRIEVER", "MODEL", "OUTPUT"],
    "finetune_end_to_end.sh": ["trivia", "joint-topk", "DATA", "RETRIEVER", "READER", "OUTPUT"],
    "retriever_real_data.sh": ["DATA", "MODEL", "OUTPUT"],
    "pretrain_realm.sh": ["PASSAGES", "MODEL", "OUTPUT"],
    "readers_real_data.sh": ["OUTPUT"],
    "end_to_end_real_data.sh": ["OUTPUT"],
    "pretraining_real_data.sh": ["DATA", "OUTPUT"],
    "strategies.sh": ["OUTPUT"],
}
#: writes down its words, one command a line
RECORDER = '#!/usr/bin/env bash\nprintf "%s\\n" "$WORLD_SIZE $(printf "%q " "$@")" >> "$COMMANDS"\n'


def test_every_launcher_is_here() -> None:
    scripts = {path.name for path in ROOT.glob("examples/*.sh") if "source examples/common.sh" in path.read_text()}
    assert scripts - {"common.sh", "torchrun_hosts.sh"} == set(LAUNCHERS)


@pytest.mark.parametrize("script", LAUNCHERS)
def test_dry_run(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, commands = tmp_path / "python", tmp_path / "commands"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    words = [str(tmp_path / word) if word.isupper() else word for word in LAUNCHERS[script]]
    environment = {
        **os.environ,
        "PYTHON": str(recorder),
        "COMMANDS": str(commands),
        "PROCESSES": "2",
        "WORLD_SIZE": "1",
    }
    result = subprocess.run(
        ["bash", f"examples/{script}", "--dry-run", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    monkeypatch.chdir(ROOT)
    folders = [word for word in LAUNCHERS[script] if word.isupper()]
    given = {tmp_path / folder for folder in (folders if folders == ["OUTPUT"] else set(folders) - {"OUTPUT"})}
    made: list[Path] = []
    for line in commands.read_text().splitlines():
        world_size, _, text = line.partition(" ")
        *flags, last = shlex.split(text)
        assert last == "--dry-run", text
        job = next(job for job in all_jobs() if tuple(flags[: len(job.command)]) == job.command)
        found = dry_run(job.config, flags[len(job.command) :], made, int(world_size))
        made += found.written
        stray = [path for _, path in found.missing if not any(path.is_relative_to(folder) for folder in given)]
        assert not stray, f"{text}: {stray}"
    assert made


#: makes the output folder of a command, and writes down what it is
MAKER = """#!/usr/bin/env bash
while (($#)); do
  if [[ $1 == --output-dir || $1 == --output ]]; then mkdir -p "$2"; echo "$2" >> "$COMMANDS"; fi
  shift
done
"""


def test_answers_from_elsewhere_have_folders_of_their_own(tmp_path: Path) -> None:
    """What was answered from concatenated passages stays, and recall is not measured again."""
    maker, commands, root = tmp_path / "python", tmp_path / "commands", tmp_path / "out" / "strategies-fixed"
    maker.write_text(MAKER)
    maker.chmod(0o755)
    (tmp_path / "out" / "squad").mkdir(parents=True)
    (tmp_path / "out" / "squad" / "train-v1.1.qa.csv").write_text("where is it\t['here']\n" * 9)
    environment = {**os.environ, "PYTHON": str(maker), "COMMANDS": str(commands), "PROCESSES": "1"}
    script = ["bash", "examples/strategies.sh", str(tmp_path / "out")]
    for more in ({}, {"ANSWER_FROM": "concatenated"}, {"ANSWER_FROM": "token"}):
        commands.write_text("")
        result = subprocess.run(script, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        made = [Path(line).relative_to(root) for line in commands.read_text().splitlines()]
        if more.get("ANSWER_FROM") == "token":
            assert Path("results-token/none/answers") in made
            assert made[-1] == Path("results-token")
        else:
            assert made[-1] == Path()
            assert (Path("results/none/answers") in made) is (not more)
        assert (Path("results/none/recall") in made) is (not more)
    for name in ("none", "joint-token"):
        assert (root / "results-token" / name / "recall").resolve() == (root / "results" / name / "recall").resolve()
    assert (root / "results-token" / "two-phase" / "training.json").read_text().count(str(root)) == 2


def test_too_few_words_show_what_the_script_does() -> None:
    result = subprocess.run(["bash", "examples/finetune_dpr.sh", "nq"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "examples/finetune_dpr.sh nq|trivia|webquestions DATA MODEL OUTPUT" in result.stderr
