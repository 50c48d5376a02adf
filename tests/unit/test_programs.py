"""What every program does about errors that are not its own: of the disk, and of files that show late."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils import late_files
from megatron_retrieval.utils.late_files import seen_late


@dataclass(kw_only=True, frozen=True)
class _Config:
    """A program without settings."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "no matter"), "error: a file: the disk is full. Free some space, then give the same"),
        (OSError(errno.EROFS, "no matter", "runs/a"), "error: runs/a: the disk is read-only.\n"),
        (DataError("a.tsv", "is empty", line=3), "error: a.tsv:3: is empty.\n"),
    ],
)
def test_what_a_user_can_mend_is_a_sentence(
    capsys: pytest.CaptureFixture[str], error: Exception, sentence: str
) -> None:
    def main(config: _Config) -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        run_program(_Config, main, [])
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith(sentence)


def test_a_bug_keeps_its_traceback() -> None:
    def main(config: _Config) -> None:
        raise OSError(errno.EBADF, "a bug")

    with pytest.raises(OSError, match="a bug"):
        run_program(_Config, main, [])


def test_files_that_show_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_files, "LOOK_SECONDS", 0.0)
    seen = iter([DataError("a", "is missing"), DataError("a", "is missing"), "whole"])

    def look() -> str:
        found = next(seen)
        if isinstance(found, Exception):
            raise found
        return found

    assert seen_late(look) == "whole"
    monkeypatch.setattr(late_files, "PATIENCE_SECONDS", -1.0)
    seen = iter([DataError("a", "is missing")])
    with pytest.raises(DataError, match="is missing"):
        seen_late(look)
