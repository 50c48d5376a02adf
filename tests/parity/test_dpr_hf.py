"""Imported DPR encoders give Hugging Face's vectors, and the export gives them back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from foreign import re_export, vectors_of_import
from safetensors.torch import load_file

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, write_model
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.testing.tiny_hf import (
    VOCABULARY,
    attention_mask,
    random_batch,
    save_with_vocabulary,
    tiny_bert,
    tiny_dpr,
)

ROLES = ("question_encoder", "ctx_encoder")
BATCH = random_batch()


def _save(folder: Path, projection_dim: int) -> list[torch.Tensor]:
    """Save tiny DPR encoders; their vectors of `BATCH`."""
    vectors = []
    for model, role in zip(tiny_dpr(projection_dim), ROLES, strict=True):
        save_with_vocabulary(model, folder / role)
        with torch.no_grad():
            vectors.append(model(BATCH.ids, attention_mask=attention_mask(BATCH)).pooler_output)
    return vectors


@pytest.mark.parametrize(("projection_dim", "tp_size"), [(0, 1), (16, 2)])
def test_vectors_and_round_trip(tmp_path: Path, projection_dim: int, tp_size: int) -> None:
    reference = _save(tmp_path / "hf", projection_dim)
    for vectors in vectors_of_import("hf-dpr", [tmp_path / "hf"], BATCH, BATCH, tp_size=tp_size):
        for ours, theirs in zip(vectors, reference, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    exported = re_export("hf-dpr", [tmp_path / "hf" / role for role in ROLES], tmp_path / "out")
    classes = (transformers.DPRQuestionEncoder, transformers.DPRContextEncoder)
    for model_class, role, theirs in zip(classes, ROLES, reference, strict=True):
        before, after = (load_file(path / role / "model.safetensors") for path in (tmp_path / "hf", exported))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        model = model_class.from_pretrained(exported / role).eval()
        with torch.no_grad():
            assert torch.equal(model(BATCH.ids, attention_mask=attention_mask(BATCH)).pooler_output, theirs)
        tokenizer = transformers.AutoTokenizer.from_pretrained(exported / role)
        assert tokenizer("W1 w7").input_ids == [2, VOCABULARY.index("w1"), VOCABULARY.index("w7"), 3]


def _save_cp(path: Path, **parameters: object) -> list[torch.Tensor]:
    """Save tiny DPR encoders as DPR's own program does; their vectors of `BATCH`."""
    state, vectors = {}, []
    for model, tower in zip(tiny_dpr(16), ("question_model", "ctx_model"), strict=True):
        for name, tensor in model.state_dict().items():
            own = name.removeprefix("question_encoder.").removeprefix("ctx_encoder.").removeprefix("bert_model.")
            state[f"{tower}.{own}"] = tensor
        with torch.no_grad():
            vectors.append(model(BATCH.ids, attention_mask=attention_mask(BATCH)).pooler_output)
    rest = {"optimizer_dict": {}, "scheduler_dict": {}, "offset": 0, "epoch": 37}
    torch.save({"model_dict": state, **rest, "encoder_params": {"do_lower_case": True, **parameters}}, path)
    return vectors


def test_a_checkpoint_of_dprs_own_program(tmp_path: Path) -> None:
    path, folder = tmp_path / "dpr.cp", tmp_path / "bert"
    reference = _save_cp(path, sequence_length=24, pretrained_model_cfg="bert-base-uncased")
    save_with_vocabulary(tiny_bert(), folder)
    ((questions, passages),) = vectors_of_import("dpr-checkpoint", [path, folder], BATCH, BATCH)
    torch.testing.assert_close(questions, reference[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(passages, reference[1], rtol=0, atol=1e-5)
    layout = FORMATS["dpr-checkpoint"].read([path, folder]).layout
    assert (layout.query_seq_length, layout.retriever_seq_length) == (24, 24)

    with pytest.raises(CheckpointError, match=r"DPR .*comes in with --format dpr-checkpoint --input FILE FOLDER"):
        FORMATS["hf-dpr"].read([path])
    with pytest.raises(CheckpointError, match=r"give --input FILE\.cp FOLDER"):
        FORMATS["dpr-checkpoint"].read([path])
    _save_cp(path, do_lower_case=False)
    with pytest.raises(CheckpointError, match="trained with do_lower_case False, the vocabulary's is True"):
        FORMATS["dpr-checkpoint"].read([path, folder])
    torch.save({"model_dict": {"qa_outputs.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match="a reader of DPR; only its retriever"):
        FORMATS["dpr-checkpoint"].read([path, folder])


def test_towers_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    _save(tmp_path, 0)
    with pytest.raises(CheckpointError, match="holds a ctx_encoder where the question_encoder is needed"):
        FORMATS["hf-dpr"].read([tmp_path / "ctx_encoder", tmp_path / "question_encoder"])
    with pytest.raises(CheckpointError, match="one DPR encoder of a pair"):
        FORMATS["hf-dpr"].read([tmp_path / "question_encoder"])


def test_hf_bert_refuses_a_projection(tmp_path: Path) -> None:
    _save(tmp_path, 16)
    encoder = FORMATS["hf-dpr"].read([tmp_path])
    with pytest.raises(CheckpointError, match="has a projection, which hf-bert cannot hold"):
        write_model("hf-bert", encoder, tmp_path / "out")
    normalised = dataclasses.replace(encoder.shape, biencoder_projection_norm=True)
    with pytest.raises(CheckpointError, match="projection has a norm, which none of the foreign formats holds"):
        write_model("hf-dpr", dataclasses.replace(encoder, shape=normalised), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    _save(tmp_path, 0)
    path = tmp_path / "ctx_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"ctx_encoder/model\.safetensors: damaged or cut off"):
        FORMATS["hf-dpr"].read([tmp_path])
