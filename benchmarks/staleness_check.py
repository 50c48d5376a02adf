"""What a plan says of training beside a rank that embeds, against two processes that do it.

The rates are measured as `megatron-retrieval plan --measure` does it; step, refresh and staleness follow from them by
the functions behind the plan. Then one process trains and one embeds, with versions asked for as soon as may be, at a
learning rate next to zero. A fusion reader made of the quickstart's BERT reads every passage that is found and writes
(Joint Top-k): all of its products are in the plan. Texts are counted as long as they are on average: a plan for texts
that fill their sequences needs no such count.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from megatron_retrieval.applications.plan.config import (
    READERS,
    HardwareConfig,
    PlanConfig,
    PlannedTrainingConfig,
    RatesConfig,
)
from megatron_retrieval.applications.plan.costs import bert_of
from megatron_retrieval.applications.plan.plan import make_plan
from megatron_retrieval.applications.plan.steps import Staleness, staleness
from megatron_retrieval.config.checks import Checked, PositiveFloat, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.tokenizers.vocabularies import open_encoder_vocabulary
from megatron_retrieval.utils.files import read_json

_ROOT = Path(__file__).parent.parent
_QUESTIONS, _PASSAGES = 32, 5
#: [CLS] and [SEP] of a text, and a [SEP] more between two
_FRAME = 2
_VERSION_DONE = re.compile(r"done with index version (\d+) after ([\d.]+) s")


@dataclass(kw_only=True, frozen=True)
class StalenessCheckConfig(Checked):
    """Compare a plan's step, refresh and staleness with two processes."""

    quickstart: Path
    """Output folder of examples/quickstart.sh: its retriever, reader and questions."""
    evidence: Path
    """Evidence large enough that a refresh takes tens of steps: that of benchmarks/refresh_speed.sh."""
    embeddings: Path
    """Its embeddings by the quickstart's ICT encoder, from there as well."""
    output_dir: Path
    """Folder for the run."""
    train_iters: PositiveInt = 100
    """Steps of the run."""
    tolerance: PositiveFloat = 0.25
    """Largest relative difference."""


def main(config: StalenessCheckConfig) -> None:
    """Raises MismatchError: the plan is further from what happens than --tolerance."""
    said, was = _planned(config), _happened(config)
    pairs = [
        ("a step, s", 1 / said.steps_per_second, 1 / was.steps_per_second),
        ("a refresh, s", said.refresh_seconds, was.refresh_seconds),
        ("steps trained meanwhile", said.steps, was.steps),
    ]
    rows = [[name, f"{plan:.3g}", f"{real:.3g}", f"{plan / real - 1:+.1%}"] for name, plan, real in pairs]
    sys.stdout.write(text_table(["", "planned", "real", "difference"], rows) + "\n")
    wrong = [name for name, plan, real in pairs if abs(plan / real - 1) > config.tolerance]
    if wrong:
        raise MismatchError(f"planned and real differ by more than {config.tolerance:.0%}: {', '.join(wrong)}.")


def _planned(config: StalenessCheckConfig) -> Staleness:
    evidence, start = EvidenceStore(config.evidence), config.quickstart
    settings = PlanConfig(
        passages=len(evidence),
        retriever=start / "ict" / "checkpoint",
        hardware=HardwareConfig(gpus=0, nodes=2, workers=1),
        rates=RatesConfig(measure=True, input=(str(start / "data" / "psgs_w100.tsv"),)),
        num_queries=_QUESTIONS,
        topk=_PASSAGES,
    ).with_artefact_defaults()
    measured = make_plan(replace(settings, training=PlannedTrainingConfig(reader="none")))
    (question, answer), passage = _mean_lengths(start), measured.config.sizes.mean_tokens
    lengths = {"query_seq_length": round(question) + _FRAME, "retriever_seq_length": round(passage) + _FRAME + 1}
    training = PlannedTrainingConfig(
        reader="t5-base",
        num_passages=_PASSAGES,
        global_batch_size=_QUESTIONS,
        reader_seq_length=round(question + passage) + _FRAME + 2,
        max_answer_length=round(answer) + 1,
        num_embedding_ranks=1,
    )
    planned = replace(measured.config, training=training, text_format=replace(settings.text_format, **lengths))
    # plans name readers; both stacks of this one have the shape of the retriever's encoder
    bert = bert_of(measured.config.encoder)
    shape = T5Config(
        num_layers=bert.num_layers,
        hidden_size=bert.hidden_size,
        num_attention_heads=bert.num_attention_heads,
        ffn_hidden_size=bert.ffn_size,
        vocab_size=bert.vocab_size,
    )
    with patch.dict(READERS, {"t5-base": shape}):
        (found,) = staleness(planned, measured.rates)
    return found


def _mean_lengths(start: Path) -> tuple[float, float]:
    """Tokens of a question and of an answer."""
    vocabulary = open_encoder_vocabulary(str(start / "data" / "vocab.txt"))
    questions = list(read_questions(str(start / "data" / "train.qa.csv")))
    columns = [question.text for question in questions], [question.answers[0] for question in questions]
    question, answer = (float(np.mean([len(ids) for ids in vocabulary.encode(texts)])) for texts in columns)
    return question, answer


def _happened(config: StalenessCheckConfig) -> Staleness:
    start, output = config.quickstart, config.output_dir
    words = [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "tasks/main.py"),
        *("--task", "end-to-end-finetune", "--config", "examples/quickstart_end_to_end.yaml"),
        *("--evidence", config.evidence, "--embeddings", config.embeddings, "--retriever", start / "ict/checkpoint"),
        *("--objective", "joint-topk", "--reader", start / "reader/checkpoint", "--reader-kind", "fusion"),
        *("--train-data", start / "data/train.qa.csv"),
        *("--num-passages", _PASSAGES, "--global-batch-size", _QUESTIONS, "--lr", "1e-12", "--no-tensorboard"),
        *("--index-refresh-interval", 1, "--num-embedding-ranks", 1, "--lr-decay-style", "constant"),
        *("--train-iters", config.train_iters, "--log-interval", 1, "--output-dir", output),
    ]
    subprocess.run([sys.executable, *map(str, words)], cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["examples_per_second"] / _QUESTIONS for line in lines if "examples_per_second" in line]
    # at the change to a version it is as old as it took to make
    ages = [line["index_staleness_steps"] for line in lines if line.get("index_version", 0) > 0]
    log = (output / "index" / "worker-0.log").read_text(encoding="utf-8")
    refreshes = [float(seconds) for _, seconds in _VERSION_DONE.findall(log)]
    if not ages:
        raise MismatchError(
            f"{output}: no version was finished in {config.train_iters} steps; give --train-iters more."
        )
    return Staleness(
        num_embedding_ranks=read_json(output / "run_record.json").get("num_embedding_ranks", 1),
        steps_per_second=1 / statistics.mean(1 / rate for rate in rates),
        refresh_seconds=statistics.mean(refreshes),
        steps=statistics.mean(ages),
    )


if __name__ == "__main__":
    run_program(StalenessCheckConfig, main)
