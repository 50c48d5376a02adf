"""Folders whose model or tokenizer is not proven equal to ours are refused by its name, before their weights are looked
for; weights come in one file or in parts, and never run a program."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.checkpoint.huggingface.weight_files import load_plain_pickle, read_weights
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.errors import CheckpointError, DataError, MegatronRetrievalError
from megatron_retrieval.testing.tiny_hf import VOCABULARY
from megatron_retrieval.tokenizers.huggingface import read_sentencepiece, read_wordpiece
from megatron_retrieval.utils.files import read_lines

BERT = {
    "model_type": "bert", "hidden_act": "gelu", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "vocab_size": 50, "layer_norm_eps": 1e-5, "initializer_range": 0.02,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 66,
    "type_vocab_size": 1,
}  # fmt: skip
STATE = {name: torch.randn(3, 2) for name in ("a", "b", "c")}
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 437951328\n"


def _folder(folder: Path, settings: dict[str, Any] = BERT, **files: Any) -> Path:
    """A folder without weights; files by name, with __ for the dot."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    for name, content in {"config__json": settings, **files}.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("model_type", ["deberta-v2", "camembert", "nomic_bert", "gemma3_text", "electra"])
@pytest.mark.parametrize("name", ["hf-bert", "hf-dpr", "sentence-transformers", "hf-t5", "hf-masked-lm"])
def test_other_models_are_refused_by_their_type(tmp_path: Path, name: str, model_type: str) -> None:
    folder = _folder(tmp_path, {**BERT, "model_type": model_type})
    kinds = ["Transformer", "Pooling"]
    modules = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    folders = [folder, folder] if name == "hf-dpr" else [folder]
    with pytest.raises(CheckpointError, match=f"model_type is '{model_type}'; only "):
        FORMATS[name].read(folders)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map: the model brings code of its own"),
        ({"quantization_config": {"load_in_8bit": True}}, "the weights are quantized"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "the tokenizer is a BertJapaneseTokenizer"),
    ],
)
def test_models_with_something_of_their_own_are_refused(tmp_path: Path, settings: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        FORMATS["hf-bert"].read([_folder(tmp_path, {**BERT, **settings})])  # type: ignore[dict-item]


ADDED = {"content": "[NUM]", "special": True}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config__json": {"tokenizer_class": "BertJapaneseTokenizer"}}, "is a BertJapaneseTokenizer"),
        ({"tokenizer_config__json": {"tokenizer_class": "RobertaTokenizerFast"}}, "is a RobertaTokenizerFast"),
        ({"tokenizer_config__json": {"tokenizer_class": "PreTrainedTokenizerFast"}}, "is a PreTrainedTokenizerFast"),
        ({"tokenizer_config__json": {"do_lower_case": True, "strip_accents": False}}, "uncased and has strip_accents"),
        ({"tokenizer_config__json": {"do_lower_case": False, "strip_accents": True}}, "cased and has strip_accents"),
        ({"tokenizer_config__json": {"tokenize_chinese_chars": False}}, "tokenize_chinese_chars False"),
        ({"tokenizer_config__json": {"cls_token": {"content": "<s>"}}}, "cls_token <s>"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"50": ADDED}}}, r"the added token '\[NUM\]' \(1 in all"),
        ({"tokenizer_config__json": {"additional_special_tokens": ["[NUM]"]}}, r"the added token '\[NUM\]'"),
        ({"special_tokens_map__json": {"additional_special_tokens": [ADDED]}}, r"the added token '\[NUM\]'"),
        ({"added_tokens__json": {"[NUM]": 50}}, r"the added token '\[NUM\]'"),
        ({"tokenizer__json": {"model": {"type": "BPE"}}}, "its model is BPE; only WordPiece"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_wordpiece(_folder(tmp_path, **files))


def test_t5_tokenizers_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a MT5Tokenizer"):
        read_sentencepiece(_folder(tmp_path, {}, tokenizer_config__json={"tokenizer_class": "MT5Tokenizer"}))
    with pytest.raises(CheckpointError, match="extra_ids 0; only 100"):
        read_sentencepiece(_folder(tmp_path, {}, tokenizer_config__json={"extra_ids": 0}))


@pytest.mark.parametrize(("lower_case", "kept"), [(True, "e"), (False, "é")])
def test_accents_and_case(tmp_path: Path, lower_case: bool, kept: str) -> None:
    folder = _folder(tmp_path, tokenizer_config__json={"do_lower_case": lower_case, "strip_accents": lower_case})
    with (folder / "vocab.txt").open("a") as file:
        file.write("e\né\n")
    tokenizer = read_wordpiece(folder)
    assert tokenizer.encode(["é"]) == [[len(VOCABULARY) + ["e", "é"].index(kept)]]


@pytest.mark.parametrize("is_pickle", [True, False])
def test_weights_in_parts(tmp_path: Path, is_pickle: bool) -> None:
    ending, save = ("bin", torch.save) if is_pickle else ("safetensors", save_file)
    stem = "pytorch_model" if is_pickle else "model"
    places = {name: f"{stem}-0000{part}-of-00002.{ending}" for name, part in (("a", 1), ("b", 2), ("c", 1))}
    for file in set(places.values()):
        save({name: tensor for name, tensor in STATE.items() if places[name] == file}, tmp_path / file)
    index = tmp_path / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = read_weights(tmp_path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))
    with pytest.raises(CheckpointError, match="weights to files of this folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tf_model.h5", "TensorFlow weights"),
        ("model.ckpt.index", "a TensorFlow checkpoint"),
        ("flax_model.msgpack", "Flax weights"),
        ("adapter_config.json", "a LoRA adapter alone"),
        ("model.onnx", "an ONNX graph"),
    ],
)
def test_weights_of_other_programs_are_named(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CheckpointError, match=f"{file}: {message}, which cannot be imported; "):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_lfs_pointers_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LFS_POINTER)
    with pytest.raises(DataError, match=f"{name}: a Git LFS pointer.*git lfs pull"):
        read_weights(tmp_path)
    with pytest.raises(DataError, match="a Git LFS pointer"):
        list(read_lines(tmp_path / name))


class _Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/a-pickle-that-ran", "w"))


def test_no_pickle_is_run_and_no_advice_given_to(tmp_path: Path) -> None:
    torch.save({"a": _Program()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"it holds .*open, which is no tensor; nothing of it was run") as caught:
        read_weights(tmp_path)
    assert "weights_only" not in str(caught.value)
    (tmp_path / "cut.bin").write_bytes(pickle.dumps(STATE)[:20])
    with pytest.raises(MegatronRetrievalError, match=r"cut\.bin: cannot be read: ") as caught:
        load_plain_pickle(tmp_path / "cut.bin")
    assert "weights_only" not in str(caught.value)


def test_checkpoints_of_megatron_lm_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "release" / "mp_rank_00"
    weights.mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    torch.save({"model": {"language_model": {}}}, weights / "model_optim_rng.pt")
    message = "a checkpoint of Megatron-LM, which cannot be read.*megatron-retrieval import checkpoint"
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        FORMATS["hf-bert"].read([tmp_path])
