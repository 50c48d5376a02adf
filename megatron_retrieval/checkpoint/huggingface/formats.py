"""Dual encoders in the folders of other projects: Hugging Face BERT, Hugging Face DPR, sentence-transformers.

One folder is one tower. A dual encoder whose towers share an encoder is one folder; one with separate towers is a
folder with the subfolders `question_encoder` and `ctx_encoder`. Exports carry `megatron_retrieval.json` beside the
format's own files, with what the format has no place for, so that export and import lose nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface import sentence_transformers as sentence_towers
from megatron_retrieval.checkpoint.huggingface import towers as hf_towers
from megatron_retrieval.checkpoint.huggingface.towers import TowerFolder
from megatron_retrieval.checkpoint.kinds.description import wordpiece_asset
from megatron_retrieval.checkpoint.kinds.dual_encoder import KIND, checkpoint_config
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import atomic_directory

EncoderFormat = Literal["hf-bert", "hf-dpr", "sentence-transformers"]

TOWER_FOLDERS = {"query": "question_encoder", "passage": "ctx_encoder"}
READERS: dict[EncoderFormat, Callable[[Path], TowerFolder]] = {
    "hf-bert": hf_towers.read_bert,
    "hf-dpr": hf_towers.read_dpr,
    "sentence-transformers": sentence_towers.read_sentence_transformer,
}
WRITERS: dict[EncoderFormat, Callable[[Path, TowerFolder, str], None]] = {
    "hf-bert": hf_towers.write_bert,
    "hf-dpr": hf_towers.write_dpr,
    "sentence-transformers": sentence_towers.write_sentence_transformer,
}


@dataclass(frozen=True)
class ForeignEncoder:
    """A dual encoder on its way between formats.

    Attributes:
        weights: full fp32 tensors under `DualEncoder`'s parameter names.
        vocabulary: WordPiece tokens in order of their ids.
        lower_case: whether the vocabulary expects lower-cased text.
    """

    config: DualEncoderConfig
    text_format: TextFormatConfig
    weights: Mapping[str, Tensor]
    vocabulary: tuple[str, ...]
    lower_case: bool

    @property
    def kind(self) -> str:
        """Of the checkpoint that it becomes."""
        return KIND

    def checkpoint_config(self) -> dict[str, Any]:
        """The settings in that checkpoint's manifest."""
        return checkpoint_config(self.config, self.text_format, self.lower_case)

    def assets(self) -> dict[str, bytes]:
        """The further files of that checkpoint."""
        return wordpiece_asset(self.vocabulary)

    def empty_model(self, topology: ProcessTopology) -> DualEncoder:
        """A model for these weights."""
        return DualEncoder(self.config, topology)


def read_encoder(name: EncoderFormat, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignEncoder:
    """Import a dual encoder.

    Args:
        folders: one tower, a folder with both, or the question tower and the passage tower.
        separate_towers: make two towers of one.

    Raises:
        CheckpointError: files or weights are missing or damaged, the model computes something that this project does
            not, or the two towers do not belong together.
    """
    paths = _tower_paths(folders)
    towers = {tower: READERS[name](path) for tower, path in paths.items()}
    if "shared" in towers and separate_towers:
        towers = dict.fromkeys(TOWER_FOLDERS, towers["shared"])
    if name == "hf-dpr":
        _check_dpr_order(towers, paths)
    if "shared" in towers:
        question = passage = towers["shared"]
    else:
        question, passage = towers["query"], towers["passage"]
        _check_same(question, passage)
    return ForeignEncoder(
        config=dataclasses.replace(passage.config, biencoder_shared_query_context_model="shared" in towers),
        text_format=dataclasses.replace(passage.text_format, query_seq_length=question.text_format.query_seq_length),
        weights={
            f"towers.{tower}.{weight}": tensor
            for tower, folder in towers.items()
            for weight, tensor in folder.weights.items()
        },
        vocabulary=passage.vocabulary,
        lower_case=passage.lower_case,
    )


def write_encoder(name: EncoderFormat, encoder: ForeignEncoder, output: Path) -> None:
    """Export a dual encoder to the new folder `output`, which appears whole or not at all.

    Raises:
        CheckpointError: the format cannot hold this model.
        DataError: `output` exists already.
    """
    is_shared = encoder.config.biencoder_shared_query_context_model
    with atomic_directory(output) as folder:
        if not is_shared or name == "hf-dpr":
            for tower, subfolder in TOWER_FOLDERS.items():
                source = "shared" if is_shared else tower
                WRITERS[name](folder / subfolder, _tower_of(encoder, source), subfolder)
        else:
            WRITERS[name](folder, _tower_of(encoder, "shared"), "")


def _tower_paths(folders: Sequence[Path]) -> dict[str, Path]:
    if len(folders) == 2:
        return dict(zip(TOWER_FOLDERS, folders, strict=True))
    if len(folders) != 1:
        raise CheckpointError(f"expected one input folder, or two (questions, passages); {len(folders)} were given.")
    subfolders = {tower: folders[0] / name for tower, name in TOWER_FOLDERS.items()}
    present = [path for path in subfolders.values() if path.is_dir()]
    if len(present) == 1:
        raise CheckpointError(f"{folders[0]}: holds {present[0].name}, but not the other tower.")
    return subfolders if present else {"shared": folders[0]}


def _tower_of(encoder: ForeignEncoder, tower: str) -> TowerFolder:
    prefix = f"towers.{tower}."
    weights = {name.removeprefix(prefix): full for name, full in encoder.weights.items() if name.startswith(prefix)}
    return TowerFolder(
        encoder.config, encoder.text_format, weights, encoder.vocabulary, encoder.lower_case, folder=Path(tower)
    )


def _check_dpr_order(towers: Mapping[str, TowerFolder], paths: Mapping[str, Path]) -> None:
    for tower, expected in TOWER_FOLDERS.items():
        if "shared" in paths:
            raise CheckpointError(
                f"{paths['shared']}: one DPR encoder of a pair; give a folder that holds {TOWER_FOLDERS['query']} and "
                f"{TOWER_FOLDERS['passage']}, or both folders after --input, questions first."
            )
        if towers[tower].role != expected:
            raise CheckpointError(f"{paths[tower]}: holds a {towers[tower].role} where the {expected} is needed.")


def _check_same(question: TowerFolder, passage: TowerFolder) -> None:
    for what in ("config", "vocabulary", "lower_case"):
        if getattr(question, what) != getattr(passage, what):
            raise CheckpointError(
                f"{question.folder} and {passage.folder} differ in {what}; the towers of a dual encoder have the same."
            )
