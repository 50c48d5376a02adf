"""What pip installs of the built wheel works without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from programs import ROOT

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
OFFLINE = ("--no-deps", "--no-index")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, in which a build leaves its traces."""
    pytest.importorskip("wheel", reason="the package wheel, which builds wheels, is not installed")
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("megatron_retrieval", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = ("wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", made, source)
    subprocess.run([*PIP, *words], check=True, timeout=300)
    (path,) = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([*PIP, "install", *OFFLINE, "--no-compile", "--target", folder, wheel], check=True, timeout=300)
    return folder


def _run(installed: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command in a folder of nothing, with this package before any other."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
    place = installed.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    return subprocess.run(
        list(map(str, words)), env=environment, cwd=place, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_holds_all_that_stands_in_the_package(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "megatron_retrieval").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {f"megatron_retrieval/{path.relative_to(ROOT)}" for path in ROOT.glob("examples/*.yaml")}
    assert len(recipes) > 10
    missing = (files | recipes) - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, f"setup.py leaves out {sorted(missing)}"


def test_commands_run_without_the_repository(installed: Path, tmp_path: Path) -> None:
    shown = _run(installed, "megatron-retrieval", "--version")
    assert (shown.returncode, shown.stdout[:18]) == (0, "megatron-retrieval"), shown.stderr
    recipe = _run(installed, "megatron-retrieval", "config", "dpr")
    assert recipe.stdout == (ROOT / "examples" / "dpr.yaml").read_text(encoding="utf-8"), recipe.stderr
    made = _run(installed, "megatron-retrieval", "build", "encyclopedia", "--output", tmp_path / "data")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "data" / "psgs_w100.tsv").stat().st_size > 100_000


def test_torchrun_starts_the_installed_command(installed: Path) -> None:
    words = ("--standalone", "--nproc-per-node", 2, "--no-python", "megatron-retrieval", "config")
    listed = _run(installed, sys.executable, "-m", "torch.distributed.run", *words)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("DPR as published") == 4  # of retriever and reader, by both processes
