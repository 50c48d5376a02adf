"""Readers whose prompts may be longer than the model's positions are refused where they are opened, not at the first
long question."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from megatron_retrieval.applications.interface.reader import Reader
from megatron_retrieval.applications.open_reader import ReaderConfig, open_reader
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.causal_lm import CausalLM
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.generation import BeamSearchConfig, GenerationConfig, generate
from megatron_retrieval.models.passage_scores import AnswerFrom
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.readers.settings import ReaderAnswersConfig
from megatron_retrieval.testing.runs import CAUSAL, END_TO_END
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_starts import CAUSAL as SHAPE
from megatron_retrieval.testing.tiny_starts import write_starts
from megatron_retrieval.types.tokens import TokenBatch

REFUSED = (
    r"a prompt with 5 passages and an answer of --max-answer-length \d+ may have \d{3,} tokens, but the model has "
)
REFUSED += "512 positions; lower --num-passages"
COMMON = "--global-batch-size 4 --lr 1e-2 --train-iters 1 --no-tensorboard --device cpu --num-passages"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_starts(tmp_path_factory.mktemp("starts"))


def _build(topology: ProcessTopology, folder: str, num_passages: int) -> list[str]:
    """What fine-tuning says, and training end to end by an objective that reads passages together, and by another."""
    words = [*COMMON.split(), str(num_passages), "--output-dir", f"{folder}/out"]
    questions = [*words, "--train-data", f"{folder}/biencoder.json"]
    both = ["--retriever", f"{folder}/retriever", "--reader", f"{folder}/causal", "--evidence", f"{folder}/evidence"]
    jobs = [
        (CAUSAL, [*words, "--train-data", f"{folder}/read.json", "--pretrained-checkpoint", f"{folder}/causal"]),
        (END_TO_END, [*questions, *both, "--objective", "emdr2"]),
        (END_TO_END, [*questions, *both, "--objective", "individual-topk"]),
    ]
    said = []
    for recipe, own in jobs:
        try:
            recipe.build(parse_config(recipe.config, own), topology)
            said.append("")
        except ConfigError as error:
            said.append(str(error))
    return said


def test_training(folder: Path) -> None:
    contexts = [{"id": str(number), "title": "room", "text": "the box stands there"} for number in range(5)]
    (folder / "read.json").write_text(json.dumps([{"question": "where?", "answers": ["there"], "ctxs": contexts}] * 4))
    ((finetuned, together, each),) = run_on_ranks(_build, 1, str(folder), 5)
    assert re.match(REFUSED, finetuned)
    assert re.match(REFUSED, together)
    assert each == ""
    assert run_on_ranks(_build, 1, str(folder), 1) == [["", "", ""]]


@pytest.mark.parametrize(
    ("num_passages", "answer_from", "closed_book", "is_refused"),
    [(1, None, False, False), (5, None, False, True), (5, "sequence", False, False), (5, None, True, False)],
)
def test_answering(
    folder: Path, num_passages: int, answer_from: AnswerFrom | None, closed_book: bool, is_refused: bool
) -> None:
    answers = ReaderAnswersConfig(search=BeamSearchConfig(answer_from=answer_from))
    config = ReaderConfig(reader=folder / "causal", answers=answers)
    reading = PassagesToReadConfig(num_passages=num_passages, closed_book=closed_book)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        if is_refused:
            with pytest.raises(ConfigError, match=REFUSED):
                open_reader(config, reading, topology)
        else:
            open_reader(config, reading, topology)


def test_in_python_passages_are_known_only_when_they_come(folder: Path) -> None:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        assert isinstance(Reader.load(folder / "causal", topology=topology).answer("where?").text, str)


def test_generation_does_not_run_past_the_last_position() -> None:
    """A prompt that leaves room for eight tokens: the last is written, and not read."""
    longest = SHAPE.max_position_embeddings - 8
    prompts = TokenBatch(torch.full((2, longest), 5), torch.tensor([longest, 3]))
    is_real = torch.ones(2, 1, dtype=torch.bool)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        reader = CausalReader(CausalLM(SHAPE, topology, seed=4).eval(), end_id=0, batch_size=4)
        fits, longer = (GenerationConfig(max_answer_length=n, min_answer_length=n - 1) for n in (9, 10))
        sources = reader.sources(prompts, is_real)
        assert generate(sources, fits, topology.groups.tp).best.lengths.tolist() == [9, 9]
        with pytest.raises(ConfigError, match=r"a sequence of 513 tokens exceeds the model's 512 positions.*answer"):
            generate(sources, longer, topology.groups.tp)
        short = reader.sources(prompts.rows(torch.tensor([1])), is_real[:1])
        assert generate(short, longer, topology.groups.tp).best.lengths.tolist() == [10]
