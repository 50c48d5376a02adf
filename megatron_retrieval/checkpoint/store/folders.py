"""A folder of checkpoints: the newest whole one in it, how another takes its place there, and which are removed.

What is on disk after a power cut follows from the order of events, each on the disk before the next begins: the new
checkpoint's files, under a hidden name; its own name; the pointer to it; only then are older ones removed. One of the
same iteration steps aside under a hidden name until the new one has its own.

    DIR/best_checkpointed_iteration.txt   the best one by a figure of evaluation; DIR/best reads it
    DIR/.iter_0000500.partial     being written, or being removed
    DIR/.iter_0000500.replaced    the one of the same iteration that stepped aside
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from megatron_retrieval.checkpoint.store.manifest import check_file, is_complete, read_manifest
from megatron_retrieval.checkpoint.store.reader import open_shards
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.utils.disk import sync_folder
from megatron_retrieval.utils.files import atomic_file
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.manifest import MANIFEST

LATEST_NAME = "latest_checkpointed_iteration.txt"
BEST_NAME = "best_checkpointed_iteration.txt"
#: DIR/best is the best checkpoint in DIR, DIR/best/NAME its part NAME
BEST = "best"
#: files that folders of Hugging Face, sentence-transformers and PEFT have
_FOREIGN = ("config.json", "modules.json", "adapter_config.json")
MEGATRON_LM = (
    "a checkpoint of Megatron-LM, which cannot be read: its pickles may run programs, and its BERT has other layers. "
    "Import the Hugging Face model that comes nearest (megatron-retrieval import checkpoint), and start from that."
)
_PREFIX, _PARTIAL, _REPLACED = "iter_", ".partial", ".replaced"

log = get_logger("checkpoint")


def folder_of(directory: Path, iteration: int) -> Path:
    """The folder of one checkpoint."""
    return directory / f"{_PREFIX}{iteration:07d}"


def is_megatron_lm(folder: Path) -> bool:
    """Whether Megatron-LM saved this."""
    return any(next(folder.glob(name), None) for name in ("mp_rank_*", "*/mp_rank_*", "*/common.pt"))


def holds_checkpoints(directory: str | Path) -> bool:
    """Whether a run has left checkpoints here, whole or not."""
    return (Path(directory) / LATEST_NAME).exists() or bool(_complete(Path(directory)))


def resolve_checkpoint(path: str | Path, *, compare_contents: bool = False) -> Path:
    """The folder of one checkpoint: `path` itself, the newest whole one inside it, or, where `path` is DIR/NAME, the
    part NAME of the newest one in DIR; DIR/best and DIR/best/NAME are of the best one.

    The newest is the one that `latest_checkpointed_iteration.txt` names. Where it is damaged or missing, the newest
    whole one takes its place, and one warning says so. `path` itself is taken as it is; reading it finds damage.

    Args:
        compare_contents: read every file and compare its checksum; otherwise a checkpoint counts as whole if no file
            is missing or cut off.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if is_complete(path):
        return path
    if not path.exists() and path.name == BEST:
        return _best(path.parent)
    if not path.exists() and path.parent.name == BEST and not path.parent.exists():
        return _existing_part(_best(path.parent.parent), path.name)
    if not path.exists() and not path.name.startswith(_PREFIX) and holds_checkpoints(path.parent):
        return _existing_part(resolve_checkpoint(path.parent, compare_contents=compare_contents), path.name)
    if is_megatron_lm(path):
        raise CheckpointError(f"{path}: {MEGATRON_LM}")
    damaged: list[str] = []
    without_optimizer: list[Path] = []
    for folder, problem in _candidates(path):
        problem = problem or _damage(folder, compare_contents=compare_contents)
        if not problem:
            if damaged:
                _warn(f"{' '.join(damaged)} The newest whole checkpoint is taken instead: {folder}")
            return folder
        damaged.append(problem)
        if is_complete(folder) and not compare_contents and not _damage(folder, needs_optimizer=False):
            without_optimizer.append(folder)
    if without_optimizer:  # removed everywhere, as only a run that resumes needs it
        return without_optimizer[0]
    if damaged:
        raise CheckpointError(f"{' '.join(damaged)} {path} holds no whole checkpoint.")
    is_foreign = any((path / name).is_file() for name in _FOREIGN)
    hint = " It looks like a model of another project: megatron-retrieval import checkpoint makes one of it."
    raise CheckpointError(
        f"{path}: no checkpoint here (neither {MANIFEST} nor {LATEST_NAME}).{hint if is_foreign else ''}"
    )


def require_whole(folder: Path, *, compare_contents: bool = False, needs_optimizer: bool = True) -> None:
    """Refuse a checkpoint of which a file is missing or cut off.

    Args:
        needs_optimizer: the optimizer's files count.
        compare_contents: or has other contents than were saved.

    Raises:
        CheckpointError: naming the file.
    """
    manifest = read_manifest(folder)
    for name in manifest.checksums:
        path = folder / name
        if name.startswith("optimizer.") and not needs_optimizer:
            continue
        is_quick = path.suffix == ".safetensors" and path.is_file()
        if is_quick:
            open_shards(path)  # compares the file's length with its header
        if compare_contents or not is_quick:
            check_file(path, manifest)
    for part in manifest.parts:
        require_whole(folder / part, compare_contents=compare_contents, needs_optimizer=needs_optimizer)


def partial_of(folder: Path) -> Path:
    """The hidden folder that becomes `folder`."""
    return folder.with_name(f".{folder.name}{_PARTIAL}")


def begin(final: Path, parts: Collection[str]) -> None:
    """Make the hidden folder, with one for each part, that is to become `final`, and remove what killed runs left."""
    directory = final.parent
    if not directory.exists():
        directory.mkdir(parents=True)
        sync_folder(directory.parent)
    for left_over in directory.glob(f".{_PREFIX}*{_PARTIAL}"):
        shutil.rmtree(left_over, ignore_errors=True)
    for name in (LATEST_NAME, BEST_NAME):
        for left_over in directory.glob(f".{name}.*"):
            left_over.unlink()
    partial = partial_of(final)
    for folder in (partial, *(partial / name for name in parts)):
        folder.mkdir()


def publish(partial: Path, final: Path, iteration: int, keep_last: int | None, *, is_best: bool = False) -> None:
    """Give the finished folder, whose files are on the disk, its name; point to it; then remove the oldest whole ones
    beyond `keep_last`, and older damaged ones. The best one and bases stay."""
    directory, aside = final.parent, final.with_name(f".{final.name}{_REPLACED}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(partial, final)
    sync_folder(directory)
    with atomic_file(directory / LATEST_NAME) as file:
        file.write(f"{iteration}\n")
    if is_best:
        with atomic_file(directory / BEST_NAME) as file:
            file.write(f"{iteration}\n")
    for replaced in directory.glob(f".{_PREFIX}*{_REPLACED}"):
        shutil.rmtree(replaced, ignore_errors=True)
    if keep_last is not None:
        _prune(directory, final, keep_last)


def discard(folder: Path) -> None:
    """Remove a checkpoint; it disappears in one step."""
    hidden = partial_of(folder)
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _prune(directory: Path, newest: Path, keep_last: int) -> None:
    others = sorted(path for path in _complete(directory).values() if path != newest)
    whole = [path for path in others if not _damage(path, compare_contents=False)]
    kept = {newest, *whole[max(0, len(whole) + 1 - keep_last) :]}
    with suppress(CheckpointError):  # none, or one that was removed or damaged: nothing to keep
        kept.add(_best(directory))
    bases = {base for path in kept for base in _bases(path)}
    for path in others:
        is_old = path in whole or path < newest  # a damaged one that is newer may be a run's that goes on elsewhere
        if path not in kept and is_old and not any(base.is_relative_to(path.resolve()) for base in bases):
            discard(path)


def _candidates(directory: Path) -> Iterator[tuple[Path, str]]:
    """The folders to try, the best first, each with what is wrong with it already."""
    complete = _complete(directory)
    pointer = directory / LATEST_NAME
    try:
        latest = int(pointer.read_text())
    except FileNotFoundError:
        if complete:
            yield directory, f"{pointer}: missing."
    except (OSError, ValueError):
        yield directory, f"{pointer}: expected the number of an iteration."
    else:
        folder = folder_of(directory, latest)
        if latest in complete:
            yield complete.pop(latest), ""
        else:
            yield folder, f"{folder}: named by {LATEST_NAME}, but it holds no {MANIFEST}."
    for iteration in sorted(complete, reverse=True):
        yield complete[iteration], ""


def _complete(directory: Path) -> dict[int, Path]:
    """The checkpoints in a folder that were written to their end, by iteration; damaged ones among them."""
    found = {}
    for pattern in (f".{_PREFIX}*{_REPLACED}", f"{_PREFIX}*"):  # a folder's own name before the one that it gave up
        for path in directory.glob(pattern):
            number = path.name.removeprefix(".").removeprefix(_PREFIX).removesuffix(_REPLACED)
            if number.isdecimal() and is_complete(path):
                found[int(number)] = path
    return found


def _damage(folder: Path, *, compare_contents: bool = False, needs_optimizer: bool = True) -> str:
    """What is wrong with a checkpoint; empty: nothing."""
    try:
        require_whole(folder, compare_contents=compare_contents, needs_optimizer=needs_optimizer)
    except CheckpointError as error:
        return str(error)
    return ""


def _bases(folder: Path) -> set[Path]:
    """The checkpoints that one refers to: by itself, by its parts, by its base."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:  # damaged, and of no use to anybody
        return set()
    bases = {base for part in manifest.parts for base in _bases(folder / part)}
    if manifest.base is None:
        return bases
    base = (folder / manifest.base.path).resolve()
    return {*bases, base, *_bases(base)}


def _best(directory: Path) -> Path:
    """The checkpoint that the run found best.

    Raises:
        CheckpointError: it kept none.
    """
    pointer = directory / BEST_NAME
    try:
        folder = folder_of(directory, int(pointer.read_text()))
    except (OSError, ValueError):
        raise CheckpointError(f"{pointer}: no best checkpoint here; --best-metric has a run keep it.") from None
    require_whole(folder, needs_optimizer=False)
    return folder


def _existing_part(folder: Path, name: str) -> Path:
    """A model that the checkpoint in `folder` is made of."""
    if name not in (parts := read_manifest(folder).parts):
        known = f"its parts are {', '.join(parts)}" if parts else "it is not made of several models"
        raise CheckpointError(f"{folder}: has no part {name!r}; {known}.")
    return folder / name


@cache
def _warn(message: str) -> None:
    """Once: a program asks several times for the same checkpoint."""
    log.warning("%s", message)
