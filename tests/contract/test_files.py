"""Modules stay short; every shipped shell script and every command of the documents parses and names real flags."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import ROOT, all_jobs

MAX_LINES = 400
SCRIPTS = sorted([*ROOT.glob("examples/*.sh"), *ROOT.glob("benchmarks/*.sh"), ROOT / ".ci" / "run"])
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ALWAYS_KNOWN = {"config", "dry-run", "help", "task"}


def logical_lines(text: str) -> Iterator[str]:
    """Lines of a shell script without comments, continued ones joined."""
    for line in text.replace("\\\n", " ").splitlines():
        yield re.sub(r"(^|\s)#.*", "", line)


def shell_blocks(document: str) -> str:
    """The shell commands that a Markdown document shows."""
    return "\n".join(re.findall(r"```(?:bash|sh|shell)\n(.*?)```", document, flags=re.DOTALL))


def unknown_flags(line: str) -> list[str]:
    """Flags after the entry point of a command that its job does not have."""
    line = re.sub(r"-m megatron_retrieval\b", "megatron-retrieval", line)
    commands = [(job, words) for job in all_jobs() for words in job.commands]
    for job, words in commands:
        start = re.search(r"(?<![\w/])" + r"\s+".join(map(re.escape, words)) + r"(?![\w-])(.*)", line)
        if start:
            given = re.findall(r"(?<=\s)--([a-z][a-z0-9-]*)", start[1].split(" | ")[0])
            known = {*job.flags, *ALWAYS_KNOWN}
            return [flag for flag in given if flag not in known and flag.removeprefix("no-") not in known]
    mentioned = re.search(
        r"(?<![\w/.])(tasks/\w+\.py|tools/\w+\.py|pretrain_\w+\.py|megatron-retrieval (?!-))(.*)", line
    )
    return [mentioned[0]] if mentioned and "--" in mentioned[2] else []


@pytest.mark.parametrize("folder", ["megatron_retrieval", "tasks", "tools", "examples", "benchmarks", "tests"])
def test_no_module_is_long(folder: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    long = [f"{path.relative_to(ROOT)} ({length})" for path, length in lengths.items() if length > MAX_LINES]
    assert not long, f"more than {MAX_LINES} lines: {', '.join(long)}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_start_safely(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*SCRIPTS, *DOCUMENTS], ids=lambda path: path.name)
def test_commands_name_real_flags(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    commands = shell_blocks(text) if path.suffix == ".md" else text
    unknown = {line.strip(): flags for line in logical_lines(commands) if (flags := unknown_flags(line))}
    assert not unknown, f"{path.name}: {unknown}"


def test_a_wrong_flag_would_be_found() -> None:
    assert unknown_flags("python tools/build_evidence.py --inputs x --output y") == ["inputs"]
    assert unknown_flags("torchrun --nproc-per-node 2 tasks/main.py --task retriever-finetune --leer 1 --no-bf16") == [
        "leer"
    ]
    assert unknown_flags("python tools/no_such_tool.py --input x")
    assert unknown_flags("megatron-retrieval build evidense --input x")
    assert unknown_flags("torchrun -m megatron_retrieval build evidence --inputs x --output y") == ["inputs"]
    assert not unknown_flags("python tools/build_evidence.py --input x --output y --workers 2 | tee --append log")


def test_test_files_have_names_of_their_own() -> None:
    """They are imported as modules of no package, of which two of one name would be the same."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert names == sorted(set(names))
