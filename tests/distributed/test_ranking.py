"""A cross-encoder learns to rank, and the number of ranks changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.objectives.ranking import binary_loss, listwise_loss, positive_is_first
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import RERANKER, curve, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

TINY = tiny_dual_encoder_config()
#: an uneven batch; the last of an epoch has 2 questions, so that one rank of two has fillers
FLAGS = (
    "--train-iters 30 --global-batch-size 5 --micro-batch-size 2 --num-hard-negatives 2 --lr 3e-3 "
    "--lr-decay-style constant --log-interval 1 --no-tensorboard --save-interval 30"
).split()


def test_losses_equal_plain_torch() -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    is_real = torch.tensor([[True] * 4, [True, True, False, False], [True, False, True, False]])
    for row, real in enumerate(is_real):
        own = scores[row][real]
        labels = F.one_hot(torch.tensor(0), len(own)).float()
        plain = F.cross_entropy(own[None], torch.tensor([0])), F.binary_cross_entropy_with_logits(own, labels)
        ours = listwise_loss(scores, is_real)[row], binary_loss(scores, is_real)[row]
        torch.testing.assert_close(torch.stack(ours), torch.stack(plain))
        assert bool(positive_is_first(scores, is_real)[row]) == (int(own.argmax()) == 0)


def _save_start(topology: ProcessTopology, folder: str) -> None:
    root, text_format = Path(folder), text_format_within(TextFormatConfig(), TINY.encoder)
    data, vocabulary = write_tiny_dpr(root)
    records = json.loads(data.read_text())
    for record in records:  # what tells a negative is one word
        for passage in record["hard_negative_ctxs"]:
            passage["text"] = passage["text"].replace("stands", "room")
    data.write_text(json.dumps(records))
    model = DualEncoder(TINY, topology, seed=1)
    DUAL_ENCODER.save(root / "start", model, topology, TINY, WordPieceTokenizer(vocabulary), text_format)


@pytest.mark.parametrize("loss", ["listwise", "binary"])
def test_it_learns_alike_at_any_number_of_ranks(tmp_path: Path, loss: str) -> None:
    run_on_ranks(_save_start, 1, str(tmp_path))
    words = [*FLAGS, "--ranking-loss", loss, "--pretrained-checkpoint", f"{tmp_path}/start"]
    words += ["--train-data", f"{tmp_path}/biencoder.json"]
    layouts = {"one": (1, 1), **({"DP": (2, 1), "TP": (2, 2)} if loss == "listwise" else {})}
    for name, (num_ranks, tp_size) in layouts.items():
        output = tmp_path / name
        train(RERANKER, [*words, "--output-dir", str(output), "--save", f"{output}/saved"], num_ranks, tp_size)
        assert curve(output) == pytest.approx(curve(tmp_path / "one"), rel=1e-4)
    losses = curve(tmp_path / "one")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert CROSS_ENCODER.describe(tmp_path / "one" / "saved").layout.pair_seq_length == 16
