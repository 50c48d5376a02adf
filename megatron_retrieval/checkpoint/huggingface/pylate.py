"""Late interaction in the folders of PyLate, and of sentence-transformers since release 6."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import read_optional_settings, read_settings
from megatron_retrieval.checkpoint.huggingface.format import ForeignModel, encoder_state, only_folder
from megatron_retrieval.checkpoint.huggingface.late_folder import (
    LINEAR,
    late_layout,
    late_model,
    read_encoder,
    refuse_prefixes,
    write_encoder,
)
from megatron_retrieval.checkpoint.huggingface.sentence_transformers import IDENTITY, SETTINGS_NAME, read_modules
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.tokenizers.huggingface import token_of
from megatron_retrieval.utils.files import write_json

#: our settings of the layout -> PyLate's
PYLATE = {
    "query_seq_length": "query_length",
    "retriever_seq_length": "document_length",
    "attend_to_mask_tokens": "attend_to_expansion_tokens",
    "query_augmentation": "do_query_expansion",
}
PREFIXES = {"query_marker_id": "query_prefix", "passage_marker_id": "document_prefix"}
#: the tokens that PyLate adds to a vocabulary
ADDED = {"query_marker_id": "[Q] ", "passage_marker_id": "[D] "}
SKIPPED = "skiplist_words"
CHAIN = {"Transformer": "sentence_transformers.models.Transformer", "Dense": "pylate.models.Dense.Dense"}
#: of sentence-transformers since release 6, whose settings stand elsewhere
LATER_CHAIN = ("Transformer", "Dense", "MultiVectorMask", "Normalize")


class PylateFormat:
    """A `Format`: Transformer and Dense of PyLate, with the settings of texts beside them."""

    name = "pylate"
    about = "folder of PyLate, or of sentence-transformers' MultiVectorEncoder; late interaction"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return kind == LATE_INTERACTION.name

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("late interaction", folders, separate_towers)
        modules = read_modules(folder, [list(CHAIN), list(LATER_CHAIN)], "Transformer and Dense, as PyLate has them")
        body, settings = modules["Transformer"], read_settings(folder / SETTINGS_NAME)
        if "MultiVectorMask" in modules:
            settings = _as_pylate(modules, settings)
        encoder, vocabulary = read_encoder(body, *ENCODER_FAMILIES.values())
        if prompt := settings.get("default_prompt_name"):
            raise CheckpointError(f"{folder / SETTINGS_NAME}: texts get the prompt {prompt!r}, which is not supported.")
        skipped = settings.get(SKIPPED)
        if skipped and set(skipped) != set(string.punctuation):
            raise CheckpointError(
                f"{folder / SETTINGS_NAME}: {SKIPPED} are {' '.join(skipped)}; only all punctuation, or nothing, can "
                "be imported."
            )
        layout = late_layout(body, settings, PYLATE, PREFIXES, ADDED, encoder, vocabulary)
        layout = dataclasses.replace(layout, mask_punctuation=skipped is None or bool(skipped))
        return late_model(body, encoder, vocabulary, layout, read_weights(body), _read_dense(modules["Dense"]), {})

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format.

        Raises:
            CheckpointError: also, texts have prefixes.
        """
        layout: LateFormatConfig = model.layout
        refuse_prefixes(layout)
        settings = {theirs: getattr(layout, ours) for ours, theirs in PYLATE.items()}
        markers = {theirs: _marker(model, ours) for ours, theirs in PREFIXES.items()}
        skipped = list(string.punctuation) if layout.mask_punctuation else []
        names = {"model_type": "ColBERT", "similarity_fn_name": "MaxSim", "default_prompt_name": None}
        write_json(folder / SETTINGS_NAME, {**names, "prompts": {}, **settings, **markers, SKIPPED: skipped})
        paths = {"Transformer": "", "Dense": "1_Dense"}
        listing = [{"idx": n, "name": str(n), "path": paths[name], "type": CHAIN[name]} for n, name in enumerate(CHAIN)]
        write_json(folder / "modules.json", listing)
        length = {"max_seq_length": layout.retriever_seq_length, "do_lower_case": False}
        write_json(folder / "sentence_bert_config.json", length)
        write_encoder(model, folder, {})
        _add_markers(model, folder / "tokenizer.json")
        write_weights(folder, encoder_state(model.weights, model.shape.encoder))
        sizes = {"in_features": model.shape.encoder.hidden_size, "out_features": model.shape.colbert_dim}
        (folder / paths["Dense"]).mkdir()
        dense = {**sizes, "bias": False, "activation_function": IDENTITY, "use_residual": False}
        write_json(folder / paths["Dense"] / "config.json", dense)
        write_weights(folder / paths["Dense"], {LINEAR: model.weights[LINEAR]})


HF_PYLATE = PylateFormat()


def is_pylate(folder: Path) -> bool:
    """Whether a folder of modules is PyLate's, or a `MultiVectorEncoder`."""
    settings = read_optional_settings(folder / SETTINGS_NAME)
    return settings.get("model_type") in ("ColBERT", "MultiVectorEncoder") or PREFIXES["query_marker_id"] in settings


def _as_pylate(modules: Mapping[str, Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `MultiVectorEncoder` as PyLate would write them.

    Raises:
        CheckpointError: it compares other tokens than ColBERT does.
    """
    texts = read_optional_settings(modules["Transformer"] / "sentence_bert_config.json")
    mask, expansion = read_settings(modules["MultiVectorMask"] / "config.json"), texts.get("query_expansion")
    fixed = {"strategy": "fixed", "token": None}
    if expansion and {key: expansion.get(key) for key in fixed} != fixed:
        raise CheckpointError(f"{modules['Transformer']}: query_expansion {expansion}; only {fixed} can be imported.")
    if mask.get("keep_only_token_ids") or mask.get("skiplist_tasks", ["document"]) != ["document"]:
        raise CheckpointError(f"{modules['MultiVectorMask']}: only tokens of documents may be left out, by a skiplist.")
    prompts, names = settings.get("prompts") or {}, {"query": "query_prefix", "document": "document_prefix"}
    return {
        **{theirs: prompts.get(role) or "" for role, theirs in names.items()},
        "query_length": expansion["length"] if expansion else texts.get("query_length"),
        "document_length": texts.get("document_length"),
        "do_query_expansion": bool(expansion),
        "attend_to_expansion_tokens": bool(expansion and expansion.get("attend")),
        SKIPPED: mask.get(SKIPPED) or [],
        "default_prompt_name": settings.get("default_prompt_name"),
    }


def _read_dense(folder: Path) -> Tensor:
    settings = read_settings(folder / "config.json")
    if (activation := settings.get("activation_function", IDENTITY)) != IDENTITY or settings.get("use_residual"):
        raise CheckpointError(f"{folder}: activation {activation}, or a residual; only a linear layer can be imported.")
    state = read_weights(folder)
    if state.keys() - {LINEAR} or LINEAR not in state:
        raise CheckpointError(f"{folder}: holds {', '.join(sorted(state))}; a linear layer without bias is needed.")
    return state[LINEAR]


def _marker(model: ForeignModel, ours: str) -> str:
    """The token of a marker; of one behind the vocabulary, PyLate's."""
    number: int | None = getattr(model.layout, ours)
    if number is None:
        return ""
    return ADDED[ours] if number >= model.vocabulary.vocab_size else token_of(model.vocabulary, number)


def _add_markers(model: ForeignModel, path: Path) -> None:
    """Write markers that lie behind the vocabulary into a `tokenizer.json`, as PyLate adds them."""
    behind = {ours: getattr(model.layout, ours) for ours in ADDED if _marker(model, ours) == ADDED[ours]}
    if not behind:
        return
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([AddedToken(ADDED[ours], normalized=False) for ours in behind])
    if behind != {ours: tokenizer.token_to_id(ADDED[ours]) for ours in behind}:
        raise CheckpointError(f"markers {list(behind.values())} do not follow on the vocabulary, as PyLate's do.")
    tokenizer.save(str(path))
