"""Import and export of whole models, one entrance for the formats of dual encoders, masked language models and T5s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import EncoderFormat, ForeignEncoder, read_encoder, write_encoder
from megatron_retrieval.checkpoint.huggingface.masked_lm import ForeignMaskedLM, read_masked_lm, write_masked_lm
from megatron_retrieval.checkpoint.huggingface.t5_folder import ForeignT5, read_t5, write_t5
from megatron_retrieval.checkpoint.kinds.description import ModelDescription
from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.checkpoint.kinds.fusion_reader import READABLE_KINDS, describe_fusion_reader
from megatron_retrieval.checkpoint.kinds.starting_point import describe_starting_point
from megatron_retrieval.checkpoint.store.reader import TensorReader
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.utils.files import read_lines

ForeignFormat = EncoderFormat | Literal["hf-bert-mlm", "hf-t5"]


def read_model(
    name: ForeignFormat, folders: Sequence[Path], *, separate_towers: bool = False
) -> ForeignEncoder | ForeignMaskedLM | ForeignT5:
    """Import a model.

    Args:
        folders: see `read_encoder`; a masked language model or a T5 is one folder.
        separate_towers: make two towers of one.

    Raises:
        CheckpointError: files or weights are missing or damaged, or cannot be imported.
    """
    if name != "hf-bert-mlm" and name != "hf-t5":
        return read_encoder(name, folders, separate_towers=separate_towers)
    if len(folders) != 1 or separate_towers:
        what = "a T5" if name == "hf-t5" else "a masked LM"
        raise CheckpointError(f"{what} is one model: give one --input folder, and leave out --separate-towers.")
    return read_t5(folders[0]) if name == "hf-t5" else read_masked_lm(folders[0])


def write_model(name: ForeignFormat, path: Path, output: Path) -> None:
    """Export a checkpoint to the new folder `output`; of a masked language model, hf-bert takes the encoder alone.

    Raises:
        CheckpointError: no checkpoint at `path`, or the format cannot hold this model.
        DataError: `output` exists already.
    """
    if name == "hf-t5":
        t5 = describe_fusion_reader(path, READABLE_KINDS)
        if not isinstance(t5.config, T5Config):
            raise CheckpointError(
                f"{t5.folder}: hf-t5 cannot hold a reader that started from a BERT; only readers that started from a "
                "T5 can be exported."
            )
        vocabulary_file = t5.folder / t5.architecture.vocabulary_name
        write_t5(ForeignT5(t5.config, _full_weights(t5), vocabulary_file), output)
        return
    checkpoint = describe_starting_point(path)
    weights = _full_weights(checkpoint)
    vocabulary = tuple(line.rstrip("\r\n") for line in read_lines(checkpoint.vocabulary().path))
    lower_case = checkpoint.lower_case
    if checkpoint.dual_encoder is not None and checkpoint.text_format is not None:
        if name == "hf-bert-mlm":
            raise CheckpointError(f"{checkpoint.folder}: a dual encoder has no head of a masked LM; export hf-bert.")
        encoder = ForeignEncoder(checkpoint.dual_encoder, checkpoint.text_format, weights, vocabulary, lower_case)
        write_encoder(name, encoder, output)
        return
    masked_lm = ForeignMaskedLM(checkpoint.bert, weights, vocabulary, lower_case)
    if name == "hf-bert-mlm":
        write_masked_lm(masked_lm, output)
    elif name == "hf-bert":
        write_encoder(name, _encoder_of(masked_lm), output)
    else:
        raise CheckpointError(
            f"{checkpoint.folder}: {name} cannot hold a masked LM; export hf-bert-mlm, or hf-bert for its encoder."
        )


def _full_weights(saved: ModelDescription) -> dict[str, Tensor]:
    reader = TensorReader(saved.folder, saved.manifest)
    return {name: reader.full(name) for name in reader.names()}


def _encoder_of(model: ForeignMaskedLM) -> ForeignEncoder:
    """The encoder as the one tower of a dual encoder with the usual settings."""
    weights = {f"towers.shared.{name}": full for name, full in model.weights.items() if name.startswith("bert.")}
    config = DualEncoderConfig(bert=model.config, biencoder_shared_query_context_model=True)
    text_format = text_format_within(TextFormatConfig(), model.config)
    return ForeignEncoder(config, text_format, weights, model.vocabulary, model.lower_case)
