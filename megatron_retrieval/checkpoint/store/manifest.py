"""Checkpoints on disk: sharded, atomic, readable at any layout of ranks, and free of pickle.

    DIR/latest_checkpointed_iteration.txt           the newest complete iteration
    DIR/iter_0000500/manifest.json                  kind, config, layouts, checksums, fingerprint, training state
    DIR/iter_0000500/model.tp0of2.safetensors       weights, one file per tensor-parallel rank
    DIR/iter_0000500/optimizer.tp0of2.safetensors   Adam's moments, sharded like the weights
    DIR/iter_0000500/vocab.txt                      assets that the model cannot be used without
    DIR/iter_0000500/NAME/                          of a model made of several, one of them: a checkpoint by itself

Weights are stored as they are before the model's dtype rounds them: trained ones in fp32, frozen ones in the dtype that
they came in. A manifest may name a *base*:
another checkpoint that holds the frozen weights, which the files of this one then leave out.

megatron-core's own format keeps its metadata in unrestricted pickles, and its tensors cannot be read without it;
safetensors files can be mapped into memory, opened by anybody, and joined at load, one tensor at a time.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.errors import CheckpointError, DataError
from megatron_retrieval.models.sharding import ShardLayout
from megatron_retrieval.utils.files import file_fingerprint
from megatron_retrieval.utils.manifest import MANIFEST, ManifestFormat

FORMAT = ManifestFormat(what="a checkpoint", version=1)


@dataclass(kw_only=True, frozen=True)
class BaseReference:
    """The checkpoint that holds what the files of another leave out.

    Attributes:
        path: its folder, absolute or relative to the folder of the checkpoint that refers to it.
        kind: what it holds.
        fingerprint: of its model; a base with another one is refused.
    """

    path: str
    kind: str
    fingerprint: str


@dataclass(kw_only=True, frozen=True)
class CheckpointManifest:
    """What a checkpoint says of itself.

    Attributes:
        kind: what was saved, for instance `dual-encoder`.
        iteration: training steps taken; 0 for an import.
        config: what is needed to build the model again.
        fingerprint: hash of the full weights, the config and the assets; the same at any layout of ranks. Of weights
            that stand in a base, the base's values count, as they are before rounding to the model's dtype.
        tp_size: files per set of tensors.
        layouts: how the shards of each parameter are joined.
        checksums: SHA-256 (16 digits) of every file, by name.
        training: state of the trainer beside the tensors (optimizer scalars, data position, seed); empty for an import.
        parts: names of the models that this one is made of, whose weights stand in folders of these names.
        base: what holds the parameters that the files leave out; None where they hold all.
    """

    kind: str
    iteration: int
    config: dict[str, Any]
    fingerprint: str
    tp_size: int
    layouts: dict[str, ShardLayout]
    checksums: dict[str, str]
    training: dict[str, Any]
    parts: tuple[str, ...] = ()
    base: BaseReference | None = None


def is_complete(folder: Path) -> bool:
    """Whether this is the folder of one checkpoint, written to its end."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> CheckpointManifest:
    """Read what a checkpoint says of itself.

    Raises:
        CheckpointError: no manifest, or one of another format.
    """
    try:
        with FORMAT.opened(Path(folder)) as fields:
            layouts = {name: ShardLayout(**layout) for name, layout in fields.pop("layouts").items()}
            base = BaseReference(**fields.pop("base")) if "base" in fields else None
            return CheckpointManifest(layouts=layouts, base=base, parts=tuple(fields.pop("parts", ())), **fields)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Make `folder` a complete checkpoint."""
    fields = dataclasses.asdict(manifest)
    if manifest.base is None:
        del fields["base"]  # as before there were bases
    FORMAT.write(folder, fields)


def check_file(path: Path, manifest: CheckpointManifest) -> None:
    """Raise CheckpointError unless the file is there and its contents are those that were saved."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing from the checkpoint.")
    if file_fingerprint(path) != manifest.checksums.get(path.name):
        raise CheckpointError(f"{path}: its checksum is not the manifest's; the file is damaged or cut off.")
