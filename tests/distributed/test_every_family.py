"""Every family of encoders learns as every kind of model that is made of an encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.checkpoint.kinds.registry import MODEL_KINDS, describe
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing import runs
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_corpus, write_tiny_evidence
from megatron_retrieval.testing.tiny_byte_bpe import write_modernbert_bpe, write_roberta_bpe, write_unigram
from megatron_retrieval.testing.tiny_starts import write_reading, write_spans
from megatron_retrieval.tokenizers.vocabularies import open_encoder_vocabulary

SHAPE = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 64,
    "max_position_embeddings": 130,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "init_method_std": 0.2,
}


def _write_wordpiece(folder: Path, texts: list[str]) -> Path:
    words = {word.lower() for text in texts for word in text.split()} | {str(number) for number in range(10)}
    folder.mkdir()
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]) + "\n")
    return path


#: what writes each one's vocabulary, trained on some texts; BERTs have tests of their own
FAMILIES: dict[str, Callable[[Path, list[str]], Path]] = {
    "mpnet": _write_wordpiece,
    "distilbert": _write_wordpiece,
    "roberta": write_roberta_bpe,
    "xlm-roberta": write_unigram,
    "modernbert": write_modernbert_bpe,
}
LENGTHS = "--query-seq-length 24 --retriever-seq-length 128".split()
READING = "--question-seq-length 24 --reader-seq-length 128".split()
JOINTLY = "--num-passages 4 --query-seq-length 24 --global-batch-size 4 --watch-sentences 0".split()
JOINTLY += "--index-refresh-interval 2 --embedding-dtype float32".split()
STEPS = "--train-iters 3 --lr 3e-3 --lr-warmup-fraction 0 --no-tensorboard --log-interval 1".split()
#: families whose readers learn together with a retriever
JOINT = ("roberta", "modernbert")
CORPUS, PAIRS, READINGS = (
    ("--data-path", "corpus"),
    ("--train-data", "biencoder.json"),
    ("--train-data", "reading.json"),
)
EVIDENCE = ("--evidence", "evidence", "--spans", "spans", "--retriever", "dual-encoder")
#: what learns: its recipe, its inputs by their names in the folder, further flags, and the kind of its checkpoint
JOBS: dict[str, tuple[runs.Recipe, tuple[str, ...], list[str], str]] = {
    "masked-lm": (
        runs.BERT,
        (*CORPUS, "--pretrained-checkpoint", "dual-encoder"),
        ["--seq-length", "128"],
        "masked-lm",
    ),
    "ICT": (runs.ICT, (*CORPUS, "--pretrained-checkpoint", "masked-lm"), LENGTHS, "dual-encoder"),
    "late-interaction": (runs.LATE, (*PAIRS, "--pretrained-checkpoint", "masked-lm"), LENGTHS, "late-interaction"),
    "extractive": (runs.READER, (*READINGS, "--pretrained-checkpoint", "masked-lm"), READING, "extractive-reader"),
    "cross-encoder": (
        runs.RERANKER,
        (*PAIRS, "--pretrained-checkpoint", "extractive"),
        ["--pair-seq-length", "128"],
        "cross-encoder",
    ),
    "MSS": (
        runs.MSS,
        (*EVIDENCE, "--reader", "extractive"),
        [*JOINTLY, *READING, "--objective", "individual-topk"],
        "extractive-reader",
    ),
    "REALM": (runs.REALM, (*EVIDENCE, "--reader", "masked-lm"), [*JOINTLY, *READING], "masked-lm"),
}


def _write_inputs(folder: Path, family: str) -> Path:
    """Texts for all jobs in the family's vocabulary, and the path of that."""
    texts = [f"where is key{n} Title {n} the box of key{n} stands in the corner of room key{n} ." for n in range(24)]
    vocab = FAMILIES[family](folder / "vocabulary", texts)
    write_tiny_corpus(folder, 8, vocab=vocab)
    write_tiny_evidence(folder, 0, vocab)
    write_reading(folder)
    write_spans(folder)
    return vocab


def _learn_all(topology: ProcessTopology, folder: str, family: str, vocab: str) -> dict[str, list[float]]:
    """The losses of every job, each of which starts from what another has learned."""
    root, vocabulary = Path(folder), open_encoder_vocabulary(vocab)
    shape = ENCODER_FAMILIES[family].shape(**SHAPE, vocab_size=vocabulary.vocab_size)
    config, layout = DualEncoderConfig(encoder=shape), TextFormatConfig(query_seq_length=24, retriever_seq_length=128)
    DUAL_ENCODER.save(
        root / "dual-encoder", DualEncoder(config, topology, seed=1), topology, config, vocabulary, layout
    )
    losses = {}
    for name, (recipe, inputs, flags, _) in JOBS.items():
        if recipe in (runs.MSS, runs.REALM) and family not in JOINT:
            continue
        words: list[Any] = [word if word.startswith("--") else root / word for word in inputs]
        words += ["--global-batch-size", 8, *flags, "--output-dir", root / name, "--save", root / name, *STEPS]
        recipe.build(parse_config(recipe.config, [str(word) for word in words]), topology).fit()
        losses[name] = runs.curve(root / name)
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_as_every_kind(tmp_path: Path, family: str) -> None:
    vocab = _write_inputs(tmp_path, family)
    (losses,) = run_on_ranks(_learn_all, 1, str(tmp_path), family, str(vocab))
    for name, curve in losses.items():
        kind = JOBS[name][3]
        folder = tmp_path / name / "reader" if name in ("MSS", "REALM") else tmp_path / name
        found = describe(folder, MODEL_KINDS)
        assert (found.kind.name, ENCODER_FAMILIES.of(found.encoder.shape).name) == (kind, family)
        assert len(curve) == 3, name
        assert all(map(math.isfinite, curve)), (name, curve)
        if name in ("masked-lm", "ICT", "late-interaction", "extractive"):
            assert curve[2] < curve[0], (name, curve)
    assert len(losses) == (len(JOBS) if family in JOINT else len(JOBS) - 2)
