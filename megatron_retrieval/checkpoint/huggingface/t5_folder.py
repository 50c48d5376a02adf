"""Hugging Face's `T5ForConditionalGeneration`: one folder with the weights and a SentencePiece model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.format import (
    ForeignModel,
    only_folder,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.t5 import export_t5, import_t5, t5_config_from_hf, t5_config_to_hf
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.utils.files import write_json


class T5Format:
    """A `Format`: a T5 1.0, 1.1 or Flan, and fusion readers that started from one."""

    name = "hf-t5"
    about = "T5ForConditionalGeneration (1.0, 1.1, Flan); a T5"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return kind in (T5_KIND.name, FUSION_READER.name) and isinstance(shape, T5Config)

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("a T5", folders, separate_towers)
        shape = t5_config_from_hf(read_model_settings(folder / "config.json", "t5"), folder / "config.json")
        vocabulary = read_vocabulary(T5_KIND.vocabulary(shape), folder, shape.vocab_size)
        return ForeignModel(T5_KIND, shape, import_t5(read_weights(folder), shape, folder), vocabulary)

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        settings = {"architectures": ["T5ForConditionalGeneration"], "dtype": "float32"}
        write_json(folder / "config.json", {**t5_config_to_hf(model.shape), **settings})
        write_vocabulary(model.vocabulary, folder, None)
        write_weights(folder, export_t5(model.weights, model.shape))


HF_T5 = T5Format()
