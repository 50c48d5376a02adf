"""A retriever starts from a pretrained BERT: one checkpoint of a masked language model, and the data."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from programs import command, run
from safetensors.torch import load_file

from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

BERT = BertConfig(
    num_layers=1, hidden_size=16, num_attention_heads=2, max_position_embeddings=32, vocab_size=37, init_method_std=0.1
)


def _save(topology: ProcessTopology, folder: str, vocab: str) -> None:
    model = MaskedLanguageModel(BERT, topology, seed=7)
    MASKED_LM.save(folder, model, topology, BERT, WordPieceTokenizer(vocab))


def _command(folder: Path, *flags: object) -> list[str]:
    """A tiny run that says nothing of shape and vocabulary."""
    words = ["tasks/main.py", "--task", "retriever-finetune", "--train-data", folder / "biencoder.json"]
    words += ["--output-dir", folder / "run", "--no-tensorboard", "--train-iters", "1", "--global-batch-size", "8"]
    return command(*words, *flags)


def test_finetuning_starts_from_a_masked_lm(tmp_path: Path) -> None:
    _, vocab = write_tiny_dpr(tmp_path)
    assert len(vocab.read_text().splitlines()) == BERT.vocab_size
    run_on_ranks(_save, 1, str(tmp_path / "bert"), str(vocab))
    flags = ("--pretrained-checkpoint", tmp_path / "bert", "--lr", "0", "--save", tmp_path / "a")
    tuned = run(_command(tmp_path, *flags, "--query-seq-length", "16"))
    assert tuned.returncode == 0, tuned.stderr
    assert "the masked-lm's encoder goes into every tower" in tuned.stderr
    before = load_file(tmp_path / "bert" / "iter_0000000" / "model.tp0of1.safetensors")
    after = load_file(tmp_path / "a" / "iter_0000001" / "model.tp0of1.safetensors")
    encoder = {name for name in before if name.startswith("bert.")}
    assert after.keys() == {f"towers.{tower}.{name}" for tower in ("query", "passage") for name in encoder}
    assert all(torch.equal(before[name], after[f"towers.{t}.{name}"]) for t in ("query", "passage") for name in encoder)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (settings["query-seq-length"], settings["retriever-seq-length"]) == (16, 32)

    resumed = run(_command(tmp_path, "--load", tmp_path / "bert"))
    assert resumed.returncode == 1
    assert "holds a masked-lm, where a dual-encoder is needed" in resumed.stderr
