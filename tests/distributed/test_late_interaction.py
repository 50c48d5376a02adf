"""Late interaction learns from a batch, and the number of ranks changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_retrieval.applications.reranking import open_reranker
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.late_interaction import LateInteraction, LateInteractionConfig
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.late_encoder import LateEncoder
from megatron_retrieval.retrieval.reranker import RerankConfig
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.runs import LATE, curve, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import contrastive_share, tiny_dual_encoder_config, write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.trainer import reduce_metrics

TINY = tiny_dual_encoder_config()
LAYOUT = LateFormatConfig(query_seq_length=10, retriever_seq_length=14)
WHOLE, CACHED = {"micro_batch_size": 64}, {"micro_batch_size": 2}


def _gradients(topology: ProcessTopology, folder: str, settings: dict[str, int]) -> dict[str, torch.Tensor]:
    """Losses and full gradients of a step of each loss; questions are uneven over ranks."""
    model = LateInteraction(LateInteractionConfig(encoder=TINY.encoder, colbert_dim=8), topology, seed=3)
    parallel = DataParallelModel(model, topology)
    encoder = LateEncoder(model, LAYOUT, WordPieceTokenizer(Path(folder) / "vocab.txt"))
    found = {}
    for loss in ("nll", "kl"):
        config = ContrastiveConfig(**settings, contrastive_loss=loss, retriever_score_scaling=False)  # type: ignore[arg-type]
        step = ContrastiveStep(encoder, config, topology, seed=3)
        parallel.zero_gradients()
        batch = contrastive_share(7, 1, 7, topology.dp_rank, topology.dp_size)
        metrics = reduce_metrics(step.forward_backward(batch, 0, 1.0), topology)
        parallel.reduce_gradients()
        found[f"{loss}, loss"] = torch.tensor(metrics["loss"])
        for name, parameter in model.named_parameters():
            found[f"{loss}, {name}"] = gather_full(parameter, topology, parameter.main_grad).clone()
    return found


def test_gradients_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    write_tiny_dpr(tmp_path)
    (expected,) = run_on_ranks(_gradients, 1, str(tmp_path), WHOLE)
    assert all(expected[f"{loss}, loss"] > 0 for loss in ("nll", "kl"))
    assert not torch.allclose(expected["nll, linear.weight"], expected["kl, linear.weight"])
    for num_ranks, tp_size, settings in ((1, 1, CACHED), (2, 1, CACHED), (4, 2, WHOLE)):
        for found in run_on_ranks(_gradients, num_ranks, str(tmp_path), settings, tensor_model_parallel_size=tp_size):
            for name, value in expected.items():
                torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-4, atol=1e-6)


def _save_start(topology: ProcessTopology, folder: str) -> None:
    data, vocabulary = write_tiny_dpr(Path(folder))
    text_format = text_format_within(TextFormatConfig(), TINY.encoder)
    model = DualEncoder(TINY, topology, seed=1)
    DUAL_ENCODER.save(data.with_name("start"), model, topology, TINY, WordPieceTokenizer(vocabulary), text_format)
    encoder = LateEncoder(
        LateInteraction(LateInteractionConfig(encoder=TINY.encoder), topology), LAYOUT, WordPieceTokenizer(vocabulary)
    )
    for loss in ("contrastive", "gist"):
        with pytest.raises(ConfigError, match=f"--contrastive-loss {loss} compares single vectors"):
            ContrastiveStep(encoder, ContrastiveConfig(contrastive_loss=loss), topology, seed=3)
    for unfit in (ContrastiveConfig(matryoshka_dims=(4,)), ContrastiveConfig(memory_batches=2)):
        with pytest.raises(ConfigError, match="are of single vectors"):
            ContrastiveStep(encoder, unfit, topology, seed=3)


def _num_first(topology: ProcessTopology, folder: str) -> int:
    """For how many questions --rerank puts the positive before the hard negatives."""
    config = RerankConfig(rerank=Path(folder) / "run" / "saved")
    reranker = open_reranker(config, EncodeConfig(micro_batch_size=2), topology)
    assert reranker is not None
    found = [
        reranker.scores(record.question, [*record.hard_negatives, *record.positives]).argmax() == 2
        for record in read_biencoder(Path(folder) / "biencoder.json")
    ]
    return sum(map(bool, found))


def test_it_learns_from_a_dual_encoder_and_reranks(tmp_path: Path) -> None:
    run_on_ranks(_save_start, 1, str(tmp_path))
    words = "--global-batch-size 6 --micro-batch-size 4 --colbert-dim 8 --query-seq-length 8 --lr 3e-3 --log-interval 1"
    words += f" --lr-decay-style constant --no-tensorboard --pretrained-checkpoint {tmp_path}/start --train-iters 30"
    words += f" --train-data {tmp_path}/biencoder.json --output-dir {tmp_path}/run --save {tmp_path}/run/saved"
    words += f" --valid-data {tmp_path}/biencoder.json --eval-interval 30"
    train(LATE, words.split())
    losses = curve(tmp_path / "run")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    found = LATE_INTERACTION.describe(tmp_path / "run" / "saved")
    assert (found.shape.colbert_dim, found.layout.query_seq_length, found.layout.retriever_seq_length) == (8, 8, 16)
    (num_first,) = run_on_ranks(_num_first, 1, str(tmp_path))
    assert num_first >= 20  # of 22
