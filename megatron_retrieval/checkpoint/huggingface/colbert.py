"""Late interaction in the folders of ColBERT, which sentence-transformers and PyLate open as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.huggingface.files import read_optional_settings
from megatron_retrieval.checkpoint.huggingface.format import ForeignModel, encoder_state, only_folder
from megatron_retrieval.checkpoint.huggingface.late_folder import (
    LINEAR,
    late_layout,
    late_model,
    read_encoder,
    refuse_prefixes,
    write_encoder,
)
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.encoder_families import BERT, ENCODER_FAMILIES
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.tokenizers.huggingface import token_of
from megatron_retrieval.utils.files import write_json

METADATA, ARCHITECTURE = "artifact.metadata", "HF_ColBERT"
#: our settings of the layout -> ColBERT's
STANFORD = {
    "query_seq_length": "query_maxlen",
    "retriever_seq_length": "doc_maxlen",
    "attend_to_mask_tokens": "attend_to_mask_tokens",
    "mask_punctuation": "mask_punctuation",
}
MARKERS = {"query_marker_id": "query_token_id", "passage_marker_id": "doc_token_id"}
#: the markers where a folder does not name them
UNUSED = {"query_marker_id": "[unused0]", "passage_marker_id": "[unused1]"}
_ASSUMED_LENGTHS = {"query_seq_length": "32 tokens are assumed, as ColBERT has them (--query-seq-length)"}


class StanfordFormat:
    """A `Format`: the `HF_ColBERT` of a BERT, whose settings stand in artifact.metadata."""

    name = "hf-colbert"
    about = "HF_ColBERT with artifact.metadata (ColBERTv2); late interaction"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return kind == LATE_INTERACTION.name and ENCODER_FAMILIES.of(shape.encoder) is BERT

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("late interaction", folders, separate_towers)
        encoder, vocabulary = read_encoder(folder, BERT)
        metadata = read_optional_settings(folder / METADATA)
        for key, only in {"similarity": "cosine", "interaction": "colbert"}.items():
            if metadata.get(key, only) != only:
                raise CheckpointError(
                    f"{folder / METADATA}: {key} is {metadata[key]!r}; only {only!r} can be imported."
                )
        layout = late_layout(folder, metadata, STANFORD, MARKERS, UNUSED, encoder, vocabulary)
        state = read_weights(folder)
        if LINEAR not in state:
            raise CheckpointError(f"{folder}: the weight {LINEAR} is missing; is it the folder of a ColBERT?")
        assumed = {} if STANFORD["query_seq_length"] in metadata else _ASSUMED_LENGTHS
        return late_model(folder, encoder, vocabulary, layout, state, state.pop(LINEAR), assumed)

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format.

        Raises:
            CheckpointError: also, texts have prefixes, or questions are not filled up.
        """
        layout: LateFormatConfig = model.layout
        if not layout.query_augmentation:
            raise CheckpointError("questions are not filled up with [MASK], as ColBERT does; export --format pylate.")
        refuse_prefixes(layout)
        settings = {theirs: getattr(layout, ours) for ours, theirs in STANFORD.items()}
        ids = {theirs: getattr(layout, ours) for ours, theirs in MARKERS.items()}
        if any(number is None or number >= model.vocabulary.vocab_size for number in ids.values()):
            raise CheckpointError("texts have no markers of the vocabulary, as ColBERT's have; export --format pylate.")
        markers = {name: token_of(model.vocabulary, number) for name, number in ids.items()}
        names = {"query_token": "[Q]", "doc_token": "[D]", "similarity": "cosine", "interaction": "colbert"}
        write_json(folder / METADATA, {**settings, **markers, **names, "dim": model.shape.colbert_dim})
        state = {
            f"{BERT.inner_prefix}{name}": full
            for name, full in encoder_state(model.weights, model.shape.encoder).items()
        }
        write_encoder(model, folder, {"architectures": [ARCHITECTURE]})
        write_weights(folder, state | {LINEAR: model.weights[LINEAR]})


HF_COLBERT = StanfordFormat()
