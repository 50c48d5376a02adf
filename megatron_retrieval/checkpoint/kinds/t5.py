"""T5s in checkpoints: shape and SentencePiece model travel with the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.kinds.description import ModelDescription, open_model, saved_settings
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

KIND = "t5"
SENTENCEPIECE_NAME = "spiece.model"


@dataclass(frozen=True)
class T5Description(ModelDescription):
    """All of a saved T5 but its weights."""

    config: T5Config

    def vocabulary(self) -> Vocabulary:
        """Open the vocabulary that the T5 was trained with."""
        return self.open_vocabulary("SentencePiece")


def describe_t5(path: str | Path) -> T5Description:
    """Read a checkpoint's description without its weights.

    Raises:
        CheckpointError: no checkpoint here, or one of something else.
    """
    found = open_model(path, (KIND,), SENTENCEPIECE_NAME)
    return T5Description(found.folder, found.manifest, saved_settings(T5Config, found))


def t5_checkpoint_config(config: T5Config) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of a T5."""
    return to_flat_dict(config)


def sentencepiece_asset(model_file: str | Path) -> dict[str, bytes]:
    """The file that a checkpoint keeps of its SentencePiece model."""
    return {SENTENCEPIECE_NAME: Path(model_file).read_bytes()}
