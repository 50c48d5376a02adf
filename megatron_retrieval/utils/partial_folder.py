"""An output folder that is written over hours: it appears when it is complete, and a killed program continues."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.disk import writing
from megatron_retrieval.utils.files import read_json, write_json

_SUFFIX = ".partial"
_JOURNAL, _LOCK, _CONTENTS = "journal.json", "lock", "contents"
#: between two entries of the journal
JOURNAL_SECONDS = 1.0


class PartialFolder:
    """OUTPUT.partial: the contents so far and a journal that says how much of them counts.

    Attributes:
        contents: the folder that becomes OUTPUT.
        state: as last saved; empty at the beginning.
        settings: what the contents depend on.
        is_published: OUTPUT is there, and the program was killed before it could tidy up.
    """

    def __init__(self, output: Path, settings: Mapping[str, object]) -> None:
        self._output, self._folder = output, _partial(output)
        self.settings = dict(settings)
        self.contents = self._folder / _CONTENTS
        self.state: dict[str, Any] = {}
        self._saved_at = 0.0
        if (self._folder / _JOURNAL).exists():
            self._read_journal()
        elif {file.name for file in self._folder.iterdir() if _JOURNAL not in file.name} - {_LOCK, _CONTENTS}:
            raise DataError(
                self._folder,
                "is in the way: it is not unfinished work of this program",
                hint="Move it or choose another output.",
            )
        has_contents = self.contents.exists()
        self.is_published = bool(self.state) and not has_contents and _is_taken(output)
        if not has_contents:
            self.state = {}
        if _is_taken(output) and not self.is_published:
            raise _exists(output)

    def save(self, state: Mapping[str, object]) -> None:
        """Save `state` for a restart; the data that it describes must be on disk already."""
        self.state = dict(state)
        write_json(self._folder / _JOURNAL, {"settings": self.settings, "state": self.state})
        self._saved_at = time.monotonic()

    def save_if_due(self, sync: Callable[[], Mapping[str, object]]) -> None:
        """`save` the state that `sync` returns after flushing the data, at most once in `JOURNAL_SECONDS`."""
        if time.monotonic() - self._saved_at >= JOURNAL_SECONDS:
            self.save(sync())

    def keep_only(self, names: Collection[str]) -> None:
        """Remove other files of the contents, which a killed run left."""
        for file in self.contents.iterdir():
            if file.name not in names:
                file.unlink()

    def publish(self) -> None:
        """Make the contents the output."""
        if self._output.exists():
            self._output.rmdir()
        os.replace(self.contents, self._output)
        self.discard()

    def discard(self) -> None:
        shutil.rmtree(self._folder)

    def _read_journal(self) -> None:
        journal = read_json(self._folder / _JOURNAL)
        begun = journal["settings"]
        for name in dict.fromkeys([*begun, *self.settings]):
            was, now = begun.get(name), self.settings.get(name)
            if was != now:
                problem = f"{name} has changed since this folder was begun: it was {was}, now it is {now}"
                hint = "Give the same settings, or remove the folder to begin anew."
                raise DataError(self._folder, problem, hint=hint)
        self.state = journal["state"]


@contextlib.contextmanager
def partial_folder(output: str | Path, settings: Mapping[str, object]) -> Iterator[PartialFolder]:
    """Begin or continue the folder `output`; unfinished work stays when the block fails.

    Args:
        settings: names and values (of JSON's types) on which the contents depend; a change is refused.

    Raises:
        DataError: `output` exists, another process is writing it, or it was begun with other settings.
        DiskError: the disk is full, read-only or failing.
    """
    output = Path(output)
    folder = _partial(output)
    if _is_taken(output) and not folder.exists():
        raise _exists(output)
    with contextlib.ExitStack() as held:
        held.enter_context(writing(output))
        folder.mkdir(parents=True, exist_ok=True)
        lock = held.enter_context(open(folder / _LOCK, "ab"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(folder, "another process is writing it") from error
        partial = PartialFolder(output, settings)
        if not partial.is_published:
            partial.contents.mkdir(exist_ok=True)
        yield partial


def input_states(paths: Sequence[str]) -> dict[str, list[int]]:
    """Size and time of change of each input file, for the settings on which contents depend.

    Raises:
        DataError: there is no such file.
    """
    states = {}
    for path in paths:
        if not Path(path).is_file():
            raise DataError(path, "is no regular file" if Path(path).exists() else "there is no such file")
        status = Path(path).stat()
        states[f"{path} (bytes, time of change)"] = [status.st_size, status.st_mtime_ns]
    return states


def _partial(output: Path) -> Path:
    whole = Path(os.path.abspath(output))  # "." has no name of its own
    return whole.with_name(whole.name + _SUFFIX)


def _is_taken(output: Path) -> bool:
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def _exists(output: Path) -> DataError:
    return DataError(output, "exists already", hint="Remove it or choose another folder.")
