"""Sentences with a name or a date hidden; which passages hold it teaches the encoder of questions (ORQA's early loss,
Lee et al. 2019, arXiv 1906.00300; masked salient spans, Guu et al. 2020, arXiv 2002.08909)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_retrieval.applications.learn.ways import WAYS, Adaptation, Way
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.config.parser import parse_config, to_flat_dict
from megatron_retrieval.data.salient.builder import SpanBuilderConfig, build_salient_spans
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.recipes.end_to_end import mss
from megatron_retrieval.recipes.end_to_end.config import RETRIEVER
from megatron_retrieval.training.steps.scoring import ScoreScalingConfig

#: passages among which those that hold the span are found, at most
_NUM_PASSAGES = 100
_SETTINGS = "mss_small"
#: settings of a run that all ways share
_TRAINING = (
    *("global-batch-size", "train-iters", "seed", "output-dir", "log-interval", "lr", "lr-warmup-fraction"),
    *("load", "save", "save-interval", "keep-last"),
)


def train_on_masked_spans(adaptation: Adaptation) -> Path:
    """The encoder of passages keeps its weights, so that the vectors searched stay right; that of questions learns."""
    searched, training = adaptation.searched, adaptation.training
    assert searched.embeddings is not None
    spans, start = training.folder / "spans", DUAL_ENCODER.describe(adaptation.start)
    if not spans.exists():
        training.folder.mkdir(parents=True, exist_ok=True)
        build_salient_spans(SpanBuilderConfig(evidence=searched.evidence, output=str(spans)))
    scores = ScoreScalingConfig().over(start.shape.normalize_embeddings)
    given: dict[str, Any] = {
        "config": _SETTINGS,
        "spans": spans,
        "evidence": searched.evidence,
        "embeddings": searched.embeddings,
        "retriever": adaptation.start,
        "reader": adaptation.start,  # the objective reads nothing with it
        "num-passages": min(_NUM_PASSAGES, max(1, len(EmbeddingStore(searched.embeddings)) // 2)),
        "temperature": scores.temperature,
        "watch-sentences": 0,
    }
    shared = to_flat_dict(training.config())
    given |= {flag: shared[flag] for flag in _TRAINING}
    words = [word for flag, value in given.items() for word in (f"--{flag}", str(value))]
    scaling = "" if scores.retriever_score_scaling else "no-"
    words += ["--no-tensorboard", f"--{scaling}retriever-score-scaling"]
    return training.run(mss.build, parse_config(mss.MssPretrainingConfig, words)) / RETRIEVER


WAYS.add(
    Way(
        "masked-spans",
        "sentences with a name or a date hidden find the passages that hold it (masked salient spans)",
        train_on_masked_spans,
    )
)
