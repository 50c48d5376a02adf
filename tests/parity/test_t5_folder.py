"""Folders of `T5ForConditionalGeneration` become ours and theirs again, vocabulary and all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, write_model
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.t5 import shift_right
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_hf import attention_mask, random_batch, tiny_t5
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES, write_sentencepiece

DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
#: public models have some rows that no token of the tokenizer names
NUM_ROWS = NUM_PIECES + 100 + 28
BATCH = random_batch()


def _save(folder: Path, *, tied: bool, vocab_size: int = NUM_ROWS) -> Path:
    tiny_t5(gated=not tied, tied=tied, vocab_size=vocab_size).save_pretrained(folder)
    write_sentencepiece(folder / "spiece.model")
    return folder


def _open(folder: Path) -> transformers.T5ForConditionalGeneration:
    return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_bit_equal(tmp_path: Path, tied: bool) -> None:
    folder = _save(tmp_path / "hf", tied=tied)
    imported = FORMATS["hf-t5"].read([folder])
    assert imported.shape.untie_embeddings_and_output_weights is not tied
    write_model("hf-t5", imported, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    models = [_open(path) for path in (folder, tmp_path / "out")]
    with torch.no_grad():
        logits = [model(BATCH.ids, attention_mask(BATCH), BATCH.ids).logits for model in models]
    assert torch.equal(*logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("<extra_id_0>").input_ids == [NUM_PIECES + 99, 1]


def _logits(topology: ProcessTopology, folder: str) -> Tensor:
    model = FORMATS["hf-t5"].read([Path(folder)]).build(topology).eval()
    with torch.no_grad():
        return model(BATCH, shift_right(BATCH.ids))


def _check_logits(folder: Path, vocab_size: int) -> None:
    with torch.no_grad():
        theirs = _open(folder)(BATCH.ids, attention_mask(BATCH), labels=BATCH.ids).logits
    ours = torch.cat(run_on_ranks(_logits, 2, str(folder), tensor_model_parallel_size=2), 2)
    assert theirs.size(2) == vocab_size
    torch.testing.assert_close(ours[:, :, :vocab_size], theirs, rtol=0, atol=1e-5)


def test_logits_of_rows_without_a_token_are_kept(tmp_path: Path) -> None:
    _check_logits(_save(tmp_path / "hf", tied=False), NUM_ROWS)


@pytest.mark.real_data
def test_the_public_vocabulary(tmp_path: Path) -> None:
    """32,100 entries over 32,128 rows."""
    source = DATA / "tokenizers" / "t5-base-spiece.model"
    if not source.is_file():
        pytest.skip(f"{source} is not here")
    folder = _save(tmp_path / "hf", tied=True, vocab_size=32128)
    (folder / "spiece.model").write_bytes(source.read_bytes())
    _check_logits(folder, 32128)


def test_weights_in_several_files(tmp_path: Path) -> None:
    folder = _save(tmp_path / "hf", tied=False)
    expected = FORMATS["hf-t5"].read([folder])
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in state.items() if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    imported = FORMATS["hf-t5"].read([folder])
    assert imported.kind is T5_KIND
    assert all(torch.equal(imported.weights[name], tensor) for name, tensor in expected.weights.items())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of its 2 files are missing.*model-00002-of-00002\.safetensors"):
        FORMATS["hf-t5"].read([folder])


def test_a_reader_of_fid_is_the_t5_that_it_wraps(tmp_path: Path) -> None:
    folder = _save(tmp_path / "hf", tied=True)
    expected = FORMATS["hf-t5"].read([folder])
    state = load_file(folder / "model.safetensors")
    wrapped = {
        re.sub(r"^encoder\.(block\.\d+\.)?", lambda m: f"encoder.{m[0]}{'module.' if m[1] else ''}", name): tensor
        for name, tensor in state.items()
    }
    assert "encoder.encoder.block.0.module.layer.0.SelfAttention.q.weight" in wrapped
    (folder / "model.safetensors").unlink()
    torch.save(wrapped, folder / "pytorch_model.bin")
    imported = FORMATS["hf-t5"].read([folder])
    assert imported.weights.keys() == expected.weights.keys()
    assert all(torch.equal(imported.weights[name], tensor) for name, tensor in expected.weights.items())


def test_mismatched_input_is_refused(tmp_path: Path) -> None:
    folder = _save(tmp_path / "hf", tied=True, vocab_size=NUM_PIECES + 99)
    with pytest.raises(CheckpointError, match="160 vocabulary entries, but only 159 word embeddings"):
        FORMATS["hf-t5"].read([folder])
    with pytest.raises(CheckpointError, match="a T5 is one model: give one --input folder"):
        FORMATS["hf-t5"].read([folder, folder])
    (folder / "spiece.model").unlink()
    with pytest.raises(CheckpointError, match=r"holds no spiece\.model"):
        FORMATS["hf-t5"].read([folder])
