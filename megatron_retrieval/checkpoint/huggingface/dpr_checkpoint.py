"""A checkpoint that DPR's own program saved (Karpukhin et al. 2020): both towers in one file, without a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.tower_folder import (
    TowerFolder,
    assemble_tower,
    take_projection,
    tower_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.towers import join_towers
from megatron_retrieval.checkpoint.huggingface.weight_files import load_plain_pickle
from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.checkpoint.kinds.encoder_families import BERT
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

TOWERS = {"query": "question_model.", "passage": "ctx_model."}


class DprCheckpointFormat:
    """A `Format`, to import alone: a file of `train_dense_encoder.py`, and the folder of the BERT that it names."""

    name = "dpr-checkpoint"
    about = "a .cp file of DPR and the folder of the BERT that it started from; a dual encoder"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format: nothing is exported."""
        return False

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format.

        Args:
            folders: the file, and the folder with config.json and vocabulary.
        """
        if len(folders) != 2 or not folders[0].is_file() or separate_towers:
            raise CheckpointError(
                "a checkpoint of DPR has two towers and no vocabulary: give --input FILE.cp FOLDER, FOLDER being that "
                "of the BERT which it started from (config.json and vocab.txt), and leave out --separate-towers."
            )
        path, folder = folders
        encoder = BERT.from_huggingface(read_model_settings(folder / "config.json", "bert"), folder / "config.json")
        vocabulary = tower_vocabulary(folder, encoder)
        content = load_plain_pickle(path)
        state, parameters = _parts(path, content)
        _check_case(path, parameters, vocabulary)
        text_format = _text_format(parameters, encoder)
        towers = {
            tower: _tower(path, encoder, text_format, vocabulary, state, prefix) for tower, prefix in TOWERS.items()
        }
        return join_towers(towers)

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        raise CheckpointError(f"{self.name} cannot be exported; hf-dpr holds the same model.")


DPR_CHECKPOINT = DprCheckpointFormat()


def _parts(path: Path, content: Any) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The weights, and what the file says of the encoder."""
    state = content.get("model_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: no checkpoint of DPR, which holds a model_dict with tensors.")
    if any(name.startswith("qa_outputs.") for name in state):
        raise CheckpointError(f"{path}: a reader of DPR; only its retriever can be imported.")
    parameters = content.get("encoder_params") or {}
    return state, parameters if isinstance(parameters, dict) else {}


def _check_case(path: Path, parameters: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    lower_case = vocabulary.settings().get("lower_case")
    if (stated := parameters.get("do_lower_case")) not in (None, lower_case):
        raise CheckpointError(f"{path}: it was trained with do_lower_case {stated}, the vocabulary's is {lower_case}.")


def _text_format(parameters: Mapping[str, Any], encoder: EncoderShape) -> TextFormatConfig:
    """DPR cuts questions and passages at one length."""
    length = parameters.get("sequence_length")
    lengths = {} if length is None else {"query_seq_length": length, "retriever_seq_length": length}
    return text_format_within(TextFormatConfig(**lengths), encoder)


def _tower(
    path: Path,
    encoder: EncoderShape,
    text_format: TextFormatConfig,
    vocabulary: Vocabulary,
    state: Mapping[str, Tensor],
    prefix: str,
) -> TowerFolder:
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not own:
        raise CheckpointError(
            f"{path}: no weights of a {prefix.removesuffix('.')}; is it a checkpoint of DPR's retriever?"
        )
    projection = take_projection(own, "encode_proj")
    dimension = projection["weight"].size(0) if projection else 0
    config = DualEncoderConfig(encoder=encoder, biencoder_projection_dim=dimension)
    return assemble_tower(path, config, text_format, vocabulary, own, projection)
