"""Dual encoders in foreign folders: one folder is one tower.

A dual encoder whose towers share an encoder is one folder; one with separate towers is a folder with the subfolders
`question_encoder` and `ctx_encoder`. Exports carry `megatron_retrieval.json` beside the format's own files, with what
the format has no place for, so that export and import lose nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.tower_folder import (
    TowerFolder,
    assemble_tower,
    tower_vocabulary,
    write_common,
)
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.checkpoint.kinds.encoder_families import (
    BERT,
    DISTILBERT,
    ENCODER_FAMILIES,
    MODERNBERT,
    MPNET,
    ROBERTA,
    UNIGRAM_BERT,
    XLM_ROBERTA,
    EncoderFamily,
)
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig

_ASSUMED_OF_BODIES = {
    "pooling": "the vector of [CLS] is assumed (--pooling, and --normalize-embeddings, --query-prefix, "
    "--passage-prefix, --passage-format where the model needs them)"
}
_ENCODERS = (DUAL_ENCODER.name, MASKED_LM.name)
TOWER_FOLDERS = {"query": "question_encoder", "passage": "ctx_encoder"}


@dataclass(frozen=True, kw_only=True)
class TowerFormat:
    """A `Format` of dual encoders.

    Attributes:
        read_tower: a folder to one tower.
        write_tower: writes one tower into a folder, given also its role: question_encoder, ctx_encoder, or nothing
            where it serves as both. Raises CheckpointError where the format cannot hold it.
        kinds: names of the kinds that it holds; of others than dual encoders, the encoder alone.
        family: of the only encoders that it holds; None: of any.
        is_pair: there are two folders in any case, each of which knows its role.
    """

    name: str
    about: str
    read_tower: Callable[[Path], TowerFolder]
    write_tower: Callable[[Path, TowerFolder, str], None]
    kinds: tuple[str, ...] = (DUAL_ENCODER.name,)
    family: EncoderFamily | None = None
    is_pair: bool = False

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        if kind not in self.kinds:
            return False
        encoder = shape.encoder if kind == DUAL_ENCODER.name else shape
        return self.family is None or ENCODER_FAMILIES.of(encoder) is self.family

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format.

        Raises:
            CheckpointError: also, the two towers do not belong together.
        """
        paths = _tower_paths(folders)
        towers = {tower: self.read_tower(path) for tower, path in paths.items()}
        if "shared" in towers and separate_towers:
            towers = dict.fromkeys(TOWER_FOLDERS, towers["shared"])
        if self.is_pair:
            _check_roles(towers, paths)
        return join_towers(towers)

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        encoder = model if model.kind is DUAL_ENCODER else _encoder_of(model)
        is_shared = encoder.shape.biencoder_shared_query_context_model
        if is_shared and not self.is_pair:
            self.write_tower(folder, _tower_of(encoder, "shared"), "")
            return
        for tower, subfolder in TOWER_FOLDERS.items():
            source = _tower_of(encoder, "shared" if is_shared else tower)
            (folder / subfolder).mkdir()
            self.write_tower(folder / subfolder, source, subfolder)


def join_towers(towers: Mapping[str, TowerFolder]) -> ForeignModel:
    """The dual encoder of two towers by the names in `TOWER_FOLDERS`, or of one named shared.

    Raises:
        CheckpointError: the two do not belong together.
    """
    question, passage = (towers.get(tower) or towers["shared"] for tower in TOWER_FOLDERS)
    _check_same(question, passage)
    shape = dataclasses.replace(passage.config, biencoder_shared_query_context_model="shared" in towers)
    layout = dataclasses.replace(
        passage.text_format,
        query_seq_length=question.text_format.query_seq_length,
        query_prefix=question.text_format.query_prefix,
    )
    weights = {
        f"towers.{tower}.{weight}": tensor
        for tower, folder in towers.items()
        for weight, tensor in folder.weights.items()
    }
    return ForeignModel(DUAL_ENCODER, shape, weights, passage.vocabulary, layout, passage.assumed)


def body_format(name: str, about: str, family: EncoderFamily, kinds: tuple[str, ...] = _ENCODERS) -> TowerFormat:
    """The format of an encoder alone, as transformers saves the model of `family`.

    How it is pooled is not the format's concern: [CLS] is assumed, unless the folder is an export.
    """

    def read_tower(folder: Path) -> TowerFolder:
        settings = read_model_settings(folder / "config.json", *family.model_types)
        encoder = family.from_huggingface(settings, folder / "config.json")
        vocabulary = tower_vocabulary(folder, encoder)
        text_format = text_format_within(TextFormatConfig(), encoder)
        config = DualEncoderConfig(encoder=encoder)
        state = read_weights(folder)
        return assemble_tower(folder, config, text_format, vocabulary, state, {}, assumed=_ASSUMED_OF_BODIES)

    def write_tower(folder: Path, tower: TowerFolder, role: str) -> None:
        if tower.config.biencoder_projection_dim:
            raise CheckpointError(f"the encoder has a projection, which {name} cannot hold; export another format.")
        write_common(folder, tower, {})
        write_weights(folder, tower.encoder_state())

    return TowerFormat(
        name=name, about=about, read_tower=read_tower, write_tower=write_tower, kinds=kinds, family=family
    )


def _encoder_of(model: ForeignModel) -> ForeignModel:
    """The encoder of another kind of model as the one tower of a dual encoder with the usual settings."""
    part = model.kind.encoder_part(model.shape)
    assert part is not None
    weights = {
        f"towers.shared.bert.{name.removeprefix(part.prefix)}": full
        for name, full in model.weights.items()
        if name.startswith(part.prefix)
    }
    shape = DualEncoderConfig(encoder=part.shape, biencoder_shared_query_context_model=True)
    layout = text_format_within(TextFormatConfig(), part.shape)
    return ForeignModel(DUAL_ENCODER, shape, weights, model.vocabulary, layout)


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


def _tower_of(encoder: ForeignModel, tower: str) -> TowerFolder:
    prefix = f"towers.{tower}."
    weights = {name.removeprefix(prefix): full for name, full in encoder.weights.items() if name.startswith(prefix)}
    return TowerFolder(encoder.shape, encoder.layout, weights, encoder.vocabulary, folder=Path(tower))


def _check_roles(towers: Mapping[str, TowerFolder], paths: Mapping[str, Path]) -> None:
    for tower, expected in TOWER_FOLDERS.items():
        if "shared" in paths:
            raise CheckpointError(
                f"{paths['shared']}: one DPR encoder of a pair; give a folder that holds {TOWER_FOLDERS['query']} and "
                f"{TOWER_FOLDERS['passage']}, or both folders after --input, questions first."
            )
        if towers[tower].role != expected:
            raise CheckpointError(f"{paths[tower]}: holds a {towers[tower].role} where the {expected} is needed.")


def _check_same(question: TowerFolder, passage: TowerFolder) -> None:
    same = {
        "config": question.config == passage.config,
        "vocabulary": question.vocabulary.fingerprint == passage.vocabulary.fingerprint,
    }
    for what, is_same in same.items():
        if not is_same:
            raise CheckpointError(
                f"{question.folder} and {passage.folder} differ in {what}; the towers of a dual encoder have the same."
            )


def _body(model: str, family: EncoderFamily) -> TowerFormat:
    return body_format(f"hf-{family.name}", f"{model}; a dual encoder, or the encoder of a masked LM", family)


HF_BERT, HF_MPNET, HF_DISTILBERT = (
    _body("BertModel", BERT),
    _body("MPNetModel", MPNET),
    _body("DistilBertModel", DISTILBERT),
)
HF_UNIGRAM_BERT = _body("BertModel with XLM-R's vocabulary", UNIGRAM_BERT)
HF_ROBERTA, HF_XLM_ROBERTA = _body("RobertaModel", ROBERTA), _body("XLMRobertaModel", XLM_ROBERTA)
HF_MODERNBERT = _body("ModernBertModel", MODERNBERT)
