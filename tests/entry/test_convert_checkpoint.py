"""The import and export tools, as a user starts them, on one and on two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from programs import command, run
from safetensors.torch import load_file

from megatron_retrieval.testing.tiny_hf import save_with_vocabulary, tiny_bert, tiny_dpr, tiny_masked_lm, tiny_t5
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES, write_sentencepiece

TWO_RANKS = ("--tensor-model-parallel-size", 2, "--device", "cpu")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_weights_survive_import_and_export(tmp_path: Path, num_processes: int) -> None:
    for model, role in zip(tiny_dpr(16), ("question_encoder", "ctx_encoder"), strict=True):
        save_with_vocabulary(model, tmp_path / "hf" / role)
    job = ["tools/import_checkpoint.py", "--format", "hf-dpr", "--input", tmp_path / "hf", "--output", tmp_path / "ck"]
    layout = ("--tensor-model-parallel-size", num_processes, "--device", "cpu")
    imported = run(command(*job, *layout, num_processes=num_processes))
    assert imported.returncode == 0, imported.stderr
    job = [
        "tools/export_checkpoint.py",
        "--format",
        "hf-dpr",
        "--checkpoint",
        tmp_path / "ck",
        "--output",
        tmp_path / "out",
    ]
    exported = run(command(*job))
    assert exported.returncode == 0, exported.stderr
    for role in ("question_encoder", "ctx_encoder"):
        before, after = (load_file(tmp_path / path / role / "model.safetensors") for path in ("hf", "out"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_masked_lm_survives_import_and_export(tmp_path: Path) -> None:
    save_with_vocabulary(tiny_masked_lm(), tmp_path / "hf")
    job = ["tools/import_checkpoint.py", "--format", "hf-masked-lm", "--input", tmp_path / "hf"]
    imported = run(command(*job, "--output", tmp_path / "ck", *TWO_RANKS, num_processes=2))
    assert imported.returncode == 0, imported.stderr
    job = ["tools/export_checkpoint.py", "--checkpoint", tmp_path / "ck", "--format"]
    for name in ("hf-masked-lm", "hf-bert"):
        exported = run(command(*job, name, "--output", tmp_path / name))
        assert exported.returncode == 0, exported.stderr
    before, whole, encoder = (
        load_file(tmp_path / name / "model.safetensors") for name in ("hf", "hf-masked-lm", "hf-bert")
    )
    assert before.keys() == whole.keys()
    assert all(torch.equal(before[name], whole[name]) for name in before)
    assert {f"bert.{name}" for name in encoder} == {name for name in before if name.startswith("bert.")}
    assert all(torch.equal(before[f"bert.{name}"], encoder[name]) for name in encoder)
    refused = run(command(*job, "hf-dpr", "--output", tmp_path / "dpr"))
    assert refused.returncode == 1
    assert "hf-dpr cannot hold this masked-lm; choose --format hf-bert or hf-masked-lm" in refused.stderr


def test_a_t5_survives_import_and_export(tmp_path: Path) -> None:
    tiny_t5(gated=True, tied=False, vocab_size=NUM_PIECES + 128).save_pretrained(tmp_path / "hf")
    write_sentencepiece(tmp_path / "hf" / "spiece.model")
    job = ["tools/import_checkpoint.py", "--format", "hf-t5", "--input", tmp_path / "hf", "--output", tmp_path / "ck"]
    imported = run(command(*job, *TWO_RANKS, num_processes=2))
    assert imported.returncode == 0, imported.stderr
    job = ["tools/export_checkpoint.py", "--checkpoint", tmp_path / "ck", "--format"]
    exported = run(command(*job, "hf-t5", "--output", tmp_path / "out"))
    assert exported.returncode == 0, exported.stderr
    before, after = (load_file(tmp_path / path / "model.safetensors") for path in ("hf", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    (spiece,) = {(path / "spiece.model").read_bytes() for path in (tmp_path / "hf", tmp_path / "out")}
    assert len(spiece) > 1000
    refused = run(command(*job, "hf-bert", "--output", tmp_path / "bert"))
    assert refused.returncode == 1
    assert "hf-bert cannot hold this t5; choose --format hf-t5" in refused.stderr


def test_a_weight_of_another_shape_is_one_sentence(tmp_path: Path) -> None:
    save_with_vocabulary(tiny_bert(), tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 60'))
    job = ["tools/import_checkpoint.py", "--format", "hf-bert", "--input", tmp_path / "hf", "--output", tmp_path / "ck"]
    result = run(command(*job, "--device", "cpu"))
    assert result.returncode == 1
    assert "error: the import: towers.shared.bert.encoder.layers.0.mlp.linear_fc1" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "ck").exists()
