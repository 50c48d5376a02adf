"""Hugging Face's `LlamaForCausalLM` and its like: one folder with the weights and a byte-level BPE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.huggingface.causal import (
    RELEASES,
    causal_config_from_hf,
    causal_config_to_hf,
    causal_names,
    causal_table,
)
from megatron_retrieval.checkpoint.huggingface.files import read_model_settings
from megatron_retrieval.checkpoint.huggingface.format import (
    ForeignModel,
    only_folder,
    read_vocabulary,
    write_vocabulary,
)
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights, write_weights
from megatron_retrieval.checkpoint.huggingface.weight_table import export_weights, import_weights
from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_LM, CAUSAL_READER
from megatron_retrieval.utils.files import write_json


class CausalFormat:
    """A `Format`: a causal language model, and readers that started from one."""

    name = "hf-causal-lm"
    about = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM; a causal language model"

    def holds(self, kind: str, shape: Any) -> bool:
        """See Format."""
        return kind in (CAUSAL_LM.name, CAUSAL_READER.name)

    def read(self, folders: Sequence[Path], *, separate_towers: bool = False) -> ForeignModel:
        """See Format."""
        folder = only_folder("a causal language model", folders, separate_towers)
        path = folder / "config.json"
        shape = causal_config_from_hf(read_model_settings(path, *RELEASES), path)
        vocabulary = read_vocabulary(CAUSAL_LM.vocabulary(shape), folder, shape.vocab_size)
        state = causal_names(read_weights(folder), shape, folder)
        weights = import_weights(state, causal_table(shape), folder, "a causal language model")
        return ForeignModel(CAUSAL_LM, shape, weights, vocabulary)

    def write(self, model: ForeignModel, folder: Path) -> None:
        """See Format."""
        special = model.vocabulary.special
        ids = {"bos_token_id": special.begin, "eos_token_id": special.end, "pad_token_id": special.pad}
        settings = {**causal_config_to_hf(model.shape, has_output=True), **ids, "dtype": "float32"}
        write_json(folder / "config.json", settings)
        write_vocabulary(model.vocabulary, folder, model.shape.max_positions)
        write_weights(folder, export_weights(model.weights, causal_table(model.shape)))


HF_CAUSAL_LM = CausalFormat()
