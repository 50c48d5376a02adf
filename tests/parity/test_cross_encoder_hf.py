"""Scores of texts equal those of sentence-transformers' `CrossEncoder`, and survive the way there and back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from megatron_retrieval.checkpoint.huggingface.cross_encoder import HF_CROSS_ENCODER
from megatron_retrieval.checkpoint.huggingface.formats import export_model, import_model
from megatron_retrieval.checkpoint.huggingface.import_settings import ImportSettingsConfig
from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_modernbert_bpe, write_roberta_bpe, write_unigram
from megatron_retrieval.testing.tiny_hf import (
    SHAPE,
    VOCABULARY,
    save_with_vocabulary,
    tiny_bert,
    tiny_cross_encoder,
    tiny_distilbert,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
    tiny_xlm_roberta,
)
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import read_json, write_json


def _write_mpnet(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *VOCABULARY[5:]]) + "\n")


#: the encoder of each family, and what writes its vocabulary
OTHERS: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[Path], object] | None]] = {
    "mpnet": (tiny_mpnet, _write_mpnet),
    "distilbert": (tiny_distilbert, None),
    "roberta": (tiny_roberta, write_roberta_bpe),
    "xlm-roberta": (tiny_xlm_roberta, write_unigram),
    "modernbert": (tiny_modernbert, write_modernbert_bpe),
}


_AS_STATED = ImportSettingsConfig()


def _words(chosen: random.Random, most: int) -> str:
    return " ".join(f"w{chosen.randrange(45)}" for _ in range(chosen.randint(1, most)))


def _pairs() -> list[tuple[str, Passage]]:
    """Of all lengths: within the 40 positions, or cut in the question, in the passage, or in both."""
    chosen = random.Random(0)
    lengths = [(5, 5), (5, 60), (60, 5), (60, 60), (18, 25), (25, 18)] * 4
    return [(_words(chosen, asked), Passage("1", _words(chosen, 3), _words(chosen, read))) for asked, read in lengths]


def _scores(
    topology: ProcessTopology, folder: str, checkpoint: str, settings: ImportSettingsConfig = _AS_STATED
) -> Tensor:
    """Of an import that was saved and read again."""
    import_model(HF_CROSS_ENCODER.name, [Path(folder)], Path(checkpoint), topology, settings=settings)
    loaded = CROSS_ENCODER.load(checkpoint, topology)
    questions, passages = zip(*_pairs(), strict=True)
    with torch.no_grad():
        return loaded.model(loaded.description.layout.lay_out(questions, passages, loaded.description.vocabulary()))


def _save(name: str, folder: Path) -> None:
    model, write = OTHERS.get(name, (tiny_bert, None))
    save_with_vocabulary(tiny_cross_encoder(model()), folder)
    if write is not None:
        (folder / "vocab.txt").unlink()
        write(folder)
    settings = {"model_max_length": SHAPE["max_position_embeddings"]}
    path = folder / "tokenizer_config.json"
    write_json(path, {**(read_json(path) if path.exists() else {}), **settings})


def _theirs(folder: Path, **settings: object) -> Tensor:
    pairs = [(question, f"{passage.title} {passage.text}") for question, passage in _pairs()]
    scores = CrossEncoder(str(folder), device="cpu", **settings).predict(pairs, show_progress_bar=False)  # type: ignore[arg-type]
    return torch.from_numpy(np.asarray(scores))


@pytest.mark.parametrize("name", ["bert", *OTHERS])
def test_scores_there_and_back(tmp_path: Path, name: str) -> None:
    _save(name, tmp_path / "hf")
    expected = _theirs(tmp_path / "hf", activation_fn=nn.Identity())
    checkpoint = tmp_path / "checkpoint"
    (scores,) = run_on_ranks(_scores, 1, str(tmp_path / "hf"), str(checkpoint))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert CROSS_ENCODER.describe(checkpoint).layout.pair_seq_length == SHAPE["max_position_embeddings"]
    export_model(HF_CROSS_ENCODER.name, checkpoint, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # an export says that scores are the logits
    assert torch.equal(_theirs(tmp_path / "out"), expected)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_a_length_that_was_asked_for_leaves_with_the_model(tmp_path: Path, name: str) -> None:
    """A model reads pairs as long as its checkpoint says, here and outside."""
    _save(name, tmp_path / "hf")
    asked = ImportSettingsConfig(pair_seq_length=20)
    checkpoint = tmp_path / "checkpoint"
    (scores,) = run_on_ranks(_scores, 1, str(tmp_path / "hf"), str(checkpoint), asked)
    export_model(HF_CROSS_ENCODER.name, checkpoint, tmp_path / "out")
    torch.testing.assert_close(_theirs(tmp_path / "out"), scores, rtol=0, atol=1e-5)
    assert HF_CROSS_ENCODER.read([tmp_path / "out"]).layout.pair_seq_length == 20


def test_lengths_beyond_the_positions_are_refused(tmp_path: Path) -> None:
    _save("bert", tmp_path)
    found = HF_CROSS_ENCODER.read([tmp_path])
    with pytest.raises(ConfigError, match="--pair-seq-length 41: the model has 40 positions"):
        ImportSettingsConfig(pair_seq_length=41).over(found, tmp_path)
    with pytest.raises(ConfigError, match="--pooling: a cross-encoder has no such setting"):
        ImportSettingsConfig(pooling="mean").over(found, tmp_path)


def test_what_has_no_one_score_is_refused(tmp_path: Path) -> None:
    save_with_vocabulary(tiny_bert(), tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight is missing; a cross-encoder is a BertForSeq"):
        HF_CROSS_ENCODER.read([tmp_path / "bert"])
    save_with_vocabulary(tiny_cross_encoder(), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    save_file({**load_file(path), "classifier.weight": torch.zeros(3, SHAPE["hidden_size"])}, path)
    with pytest.raises(CheckpointError, match="3 labels; a cross-encoder has one"):
        HF_CROSS_ENCODER.read([tmp_path / "hf"])
