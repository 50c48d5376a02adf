"""A cross-encoder learns to rank, and the number of ranks changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn import functional as F

from megatron_retrieval.applications.reranking import open_reranker
from megatron_retrieval.applications.teacher_scores import TeacherScoresConfig, main
from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.objectives.distillation import both_of_counted, margin_errors, teacher_divergence
from megatron_retrieval.objectives.ranking import binary_loss, listwise_loss, positive_ranks
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.reranker import RerankConfig
from megatron_retrieval.testing.runs import RERANKER, curve, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.extractive import SpanLogits

TINY = tiny_dual_encoder_config()
#: an uneven batch; the last of an epoch has 1 question, so that one rank of two has fillers alone
FLAGS = (
    "--train-iters 30 --global-batch-size 7 --micro-batch-size 2 --num-hard-negatives 2 --lr 3e-3 "
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
        assert int(positive_ranks(scores, is_real)[row]) == 1 + own.argsort(descending=True).tolist().index(0)
    ties = positive_ranks(torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 3.0]]), torch.ones(2, 3, dtype=torch.bool))
    assert ties.tolist() == [2, 2]


def test_losses_from_a_teacher_equal_plain_torch() -> None:
    """The teacher leaves out a passage of the first question, and the positive of the last."""
    draw = torch.Generator().manual_seed(0)
    scores, teacher = torch.randn(4, 4, generator=draw).requires_grad_(), torch.randn(4, 4, generator=draw)
    is_real = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False], [True] * 4])
    teacher[0, 2] = teacher[3, 0] = torch.nan
    counted = both_of_counted(scores, teacher, is_real)
    margins, divergences = margin_errors(*counted), teacher_divergence(*counted)
    for row, places in enumerate(([0, 1, 3], [0, 1])):
        own, theirs = scores[row, places], teacher[row, places]
        plain = F.mse_loss(own[0] - own[1:], theirs[0] - theirs[1:])
        torch.testing.assert_close(margins[row], plain)
        plain = F.kl_div(own.log_softmax(0), theirs.softmax(0), reduction="sum")
        torch.testing.assert_close(divergences[row], plain)
    assert margins[2:].tolist() == divergences[2:].tolist() == [0, 0]
    (margins + divergences).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad != 0).tolist() == [[True, True, False, True], [True, True, False, False], *[[False] * 4] * 2]


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
    if loss == "listwise":
        _teaches(tmp_path)


def _score(topology: ProcessTopology, folder: str, name: str) -> None:
    root = Path(folder)
    files = {"train_data": root / "biencoder.json", "output": root / f"{name}.json"}
    main(TeacherScoresConfig(checkpoint=root / "one" / "saved", **files), topology)


def _teaches(folder: Path) -> None:
    """Its scores stand in the file, whatever the number of ranks, and a cross-encoder that starts anew learns them."""
    for name, num_ranks, tp_size in (("scored", 1, 1), ("DP-scored", 2, 1), ("TP-scored", 2, 2)):
        run_on_ranks(_score, num_ranks, str(folder), name, tensor_model_parallel_size=tp_size)
    names = ("biencoder", "scored", "DP-scored", "TP-scored")
    plain, scored, *others = (list(read_biencoder(folder / f"{name}.json")) for name in names)
    for other in others:
        for before, example, same in zip(plain, scored, other, strict=True):
            assert dataclasses.replace(example, teacher_scores=before.teacher_scores) == before
            assert same.teacher_scores == pytest.approx(example.teacher_scores, abs=1e-4)
    words = [*FLAGS, "--ranking-loss", "kl", "--pretrained-checkpoint", f"{folder}/start"]
    train(RERANKER, [*words, "--train-data", f"{folder}/scored.json", "--output-dir", f"{folder}/taught"])
    plain_dev = ["--valid-data", f"{folder}/biencoder.json", "--output-dir", f"{folder}/untaught"]
    with pytest.raises(ProcessRaisedException, match="kl learns from a teacher, and --valid-data has no"):
        train(RERANKER, [*words, "--train-data", f"{folder}/scored.json", *plain_dev])
    losses = curve(folder / "taught")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def _by_a_reader(topology: ProcessTopology, folder: str) -> list[torch.Tensor]:
    """Scores of --rerank, and the reader's own of each pair alone."""
    data, path = write_tiny_dpr(Path(folder))
    vocabulary, layout = WordPieceTokenizer(path), ExtractiveFormatConfig(question_seq_length=6, reader_seq_length=16)
    reader = ExtractiveReader(TINY.encoder, topology, seed=2).eval()
    EXTRACTIVE_READER.save(f"{folder}/reader", reader, topology, TINY.encoder, vocabulary, layout)
    config = RerankConfig(rerank=Path(folder) / "reader")
    reranker = open_reranker(config, EncodeConfig(micro_batch_size=2), topology)
    assert reranker is not None
    record = next(iter(read_biencoder(data)))
    passages = [*record.positives, *record.hard_negatives]
    alone = []
    for passage in passages:
        columns = (tokenize(vocabulary, [text]) for text in (record.question, passage.title, passage.text))
        logits: SpanLogits = reader(layout.lay_out(*columns, vocabulary.special))
        alone.append(logits.selection.detach())
    return [reranker.scores(record.question, passages), torch.cat(alone)]


def test_a_reader_reranks_by_its_scores_of_passages(tmp_path: Path) -> None:
    ((scores, alone),) = run_on_ranks(_by_a_reader, 1, str(tmp_path))
    assert len(scores.unique()) == len(scores) > 2
    torch.testing.assert_close(scores, alone)
