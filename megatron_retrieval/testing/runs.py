"""Short training runs of any recipe on any number of ranks, and what they leave: curves and weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from megatron_retrieval.checkpoint.store.folders import LATEST_NAME
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.causal import CausalFinetuneConfig
from megatron_retrieval.readers.extractive import ExtractiveFinetuneConfig
from megatron_retrieval.readers.fusion import FusionFinetuneConfig
from megatron_retrieval.readers.retro import RetroFinetuneConfig
from megatron_retrieval.recipes import (
    bert_pretraining,
    ict_pretraining,
    late_interaction_finetune,
    reader_finetune,
    reranker_finetune,
    retriever_finetune,
    retro_pretraining,
    t5_pretraining,
)
from megatron_retrieval.recipes.end_to_end import config as end_to_end_finetune
from megatron_retrieval.recipes.end_to_end import finetune as end_to_end
from megatron_retrieval.recipes.end_to_end import mss, realm
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.trainer import Trainer


class Recipe(NamedTuple):
    """A job's configuration and what builds its trainer."""

    config: type[Any]
    build: Callable[[Any, ProcessTopology], Trainer]


BERT = Recipe(bert_pretraining.BertPretrainingConfig, bert_pretraining.build)
ICT = Recipe(ict_pretraining.IctPretrainingConfig, ict_pretraining.build)
T5 = Recipe(t5_pretraining.T5PretrainingConfig, t5_pretraining.build)
FINETUNE = Recipe(retriever_finetune.RetrieverFinetuneConfig, retriever_finetune.build)
RERANKER = Recipe(reranker_finetune.RerankerFinetuneConfig, reranker_finetune.build)
LATE = Recipe(late_interaction_finetune.LateInteractionFinetuneConfig, late_interaction_finetune.build)
READER = Recipe(ExtractiveFinetuneConfig, reader_finetune.build)
FUSION = Recipe(FusionFinetuneConfig, reader_finetune.build)
CAUSAL = Recipe(CausalFinetuneConfig, reader_finetune.build)
RETRO_READER = Recipe(RetroFinetuneConfig, reader_finetune.build)
RETRO = Recipe(retro_pretraining.RetroPretrainingConfig, retro_pretraining.build)
MSS = Recipe(mss.MssPretrainingConfig, mss.build)
REALM = Recipe(realm.RealmPretrainingConfig, realm.build)
END_TO_END = Recipe(end_to_end_finetune.EndToEndFinetuneConfig, end_to_end.build)

#: ranks and tensor-parallel size; the rest of the ranks are data-parallel
LAYOUTS = {"TP 2": (2, 2), "DP 2": (2, 1), "TP 2 x DP 2": (4, 2)}


def train(
    recipe: Recipe, words: Sequence[str], num_ranks: int = 1, tp_size: int = 1, *, num_steps: int | None = None
) -> None:
    """Run the job that the command-line words describe; of its schedule the first `num_steps` alone, if given."""
    run_on_ranks(_fit, num_ranks, recipe, list(words), num_steps, tensor_model_parallel_size=tp_size)


def _fit(topology: ProcessTopology, recipe: Recipe, words: list[str], num_steps: int | None) -> None:
    trainer = recipe.build(parse_config(recipe.config, words), topology)
    trainer.train_iters = num_steps or trainer.train_iters
    trainer.fit()


def curve(output: Path, key: str = "loss") -> list[float]:
    """What a run logged under `key`, in order."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [record[key] for record in records if key in record]


def rewind(checkpoints: Path, iteration: int) -> None:
    """Let a run that resumes from this folder start at an earlier checkpoint."""
    (checkpoints / LATEST_NAME).write_text(f"{iteration}\n")


def flip_byte(path: Path) -> None:
    """Change a byte in the middle of a file, whose length stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def saved_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that was saved without tensor parallelism."""
    return load_file(checkpoint / "model.tp0of1.safetensors")
