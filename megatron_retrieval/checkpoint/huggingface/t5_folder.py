"""Hugging Face's `T5ForConditionalGeneration`: one folder with the weights and a SentencePiece model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import read_settings, read_weights, write_weights
from megatron_retrieval.checkpoint.huggingface.t5 import export_t5, import_t5, t5_config_from_hf, t5_config_to_hf
from megatron_retrieval.checkpoint.kinds.t5 import KIND, SENTENCEPIECE_NAME, sentencepiece_asset, t5_checkpoint_config
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.sentencepiece import NUM_SENTINELS, SentencePieceTokenizer
from megatron_retrieval.utils.files import atomic_directory, write_json


@dataclass(frozen=True)
class ForeignT5:
    """A T5 on its way between formats.

    Attributes:
        weights: full fp32 tensors under the parameter names of our `T5`.
        sentencepiece_file: its vocabulary.
    """

    config: T5Config
    weights: Mapping[str, Tensor]
    sentencepiece_file: Path

    @property
    def kind(self) -> str:
        """Of the checkpoint that it becomes."""
        return KIND

    def checkpoint_config(self) -> dict[str, Any]:
        """The settings in that checkpoint's manifest."""
        return t5_checkpoint_config(self.config)

    def assets(self) -> dict[str, bytes]:
        """The further files of that checkpoint."""
        return sentencepiece_asset(self.sentencepiece_file)

    def empty_model(self, topology: ProcessTopology) -> T5:
        """A model for these weights."""
        return T5(self.config, topology)


def read_t5(folder: Path) -> ForeignT5:
    """Import a T5 1.0, 1.1 or Flan.

    Raises:
        CheckpointError: files or weights are missing or damaged, or the model computes something that this project
            does not.
        DataError: its vocabulary is damaged, or none of T5's kind.
    """
    config = t5_config_from_hf(read_settings(folder / "config.json"), folder / "config.json")
    vocabulary = folder / SENTENCEPIECE_NAME
    if not vocabulary.is_file():
        raise CheckpointError(f"{folder}: holds no {SENTENCEPIECE_NAME}; copy it there from the model's release.")
    if (num_entries := SentencePieceTokenizer(vocabulary).vocab_size) > config.vocab_size:
        raise CheckpointError(
            f"{folder}: {num_entries} vocabulary entries, but only {config.vocab_size} word embeddings."
        )
    return ForeignT5(config, import_t5(read_weights(folder), config, folder), vocabulary)


def write_t5(model: ForeignT5, output: Path) -> None:
    """Export a T5 to the new folder `output`, which appears whole or not at all.

    Raises:
        DataError: `output` exists already.
    """
    settings = {"architectures": ["T5ForConditionalGeneration"], "dtype": "float32"}
    tokenizer = {"tokenizer_class": "T5Tokenizer", "extra_ids": NUM_SENTINELS}
    with atomic_directory(output) as folder:
        write_json(folder / "config.json", {**t5_config_to_hf(model.config), **settings})
        write_json(folder / "tokenizer_config.json", tokenizer)
        (folder / SENTENCEPIECE_NAME).write_bytes(model.sentencepiece_file.read_bytes())
        write_weights(folder, export_t5(model.weights, model.config))
