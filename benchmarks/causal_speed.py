"""Tokens a second of a causal language model in training and generation, beside transformers with the same weights.

python benchmarks/causal_speed.py --model SmolLM2-135M-Instruct --output causal_speed.json

Both run on the same prompts in float32, in turns. Ours compute no padding, and the output layer at answers alone;
transformers gets batches padded on the right in training and on the left in generation, sorted by length as ours are.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.types.tokens import TokenBatch, by_length
from megatron_retrieval.utils.files import write_json
from megatron_retrieval.utils.logging import get_logger

log = get_logger("benchmark")


@dataclass(kw_only=True, frozen=True)
class CausalSpeedConfig(Checked):
    """Time a causal language model beside transformers."""

    model: Path
    """Hugging Face folder of the model."""
    output: Path
    """JSON file for the results."""
    num_prompts: PositiveInt = 16
    """Prompts of one turn."""
    shortest: PositiveInt = 60
    """Tokens of the shortest prompt; lengths are spread evenly."""
    longest: PositiveInt = 240
    """Tokens of the longest prompt."""
    answer_length: PositiveInt = 8
    """Tokens of an answer."""
    micro_batch_size: PositiveInt = 4
    """Prompts at once in training; in generation, all."""
    turns: PositiveInt = 3
    """Turns of each of the two; the median counts."""


def main(config: CausalSpeedConfig) -> None:
    """Raises AssertionError where the two do not compute the same."""
    found = FORMATS["hf-causal-lm"].read([config.model])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    lengths = torch.linspace(config.shortest, config.longest, config.num_prompts).long()
    ids = torch.randint(100, 40000, (config.num_prompts, config.longest), generator=torch.Generator().manual_seed(1))
    prompts = TokenBatch(ids, lengths)
    labels = torch.randint(100, 40000, (config.num_prompts, config.answer_length))
    with process_topology(ParallelConfig(device="cpu")) as topology:
        reader = CausalReader(found.build(topology), end_id=-1, batch_size=config.micro_batch_size)
        num_read = int(lengths.sum()) + config.num_prompts * (config.answer_length - 1)
        training = _compare(
            lambda: _our_step(reader, prompts, labels),
            lambda: _their_step(theirs, prompts, labels, config.micro_batch_size),
            config.turns,
        )
        search = GenerationConfig(max_answer_length=config.answer_length, min_answer_length=config.answer_length - 1)
        is_real = torch.ones(config.num_prompts, 1, dtype=torch.bool)
        writing = _compare(
            lambda: generate(reader.sources(prompts, is_real), search, topology.groups.tp).best.ids,
            lambda: _their_answers(theirs, prompts, config.answer_length),
            config.turns,
        )
    result = {
        "training": _rates(training, num_read),
        "generation": _rates(writing, config.num_prompts * config.answer_length),
        "load_average": os.getloadavg()[0],
        "num_threads": torch.get_num_threads(),
        "prompt_tokens": int(lengths.sum()),
    }
    write_json(config.output, result)
    log.info("%s", result)


def _our_step(reader: CausalReader, prompts: TokenBatch, labels: Tensor) -> Tensor:
    reader.train()
    loss = -reader.score_tokens(prompts, torch.ones(len(prompts), 1, dtype=torch.bool), labels).mean()
    loss.backward()
    reader.eval()
    reader.zero_grad()
    return loss.detach()


def _their_step(model: transformers.PreTrainedModel, prompts: TokenBatch, labels: Tensor, batch_size: int) -> Tensor:
    model.train()
    total = torch.zeros(())
    for rows in by_length(prompts.lengths, batch_size):
        part = prompts.rows(rows)
        width = int(part.lengths.max()) + labels.size(1)
        ids, wanted = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -100)
        for row, (length, answer) in enumerate(zip(part.lengths.tolist(), labels[rows], strict=True)):
            ids[row, :length], ids[row, length : length + len(answer)] = part.ids[row, :length], answer
            wanted[row, length : length + len(answer)] = answer
        mask = torch.arange(width) < (part.lengths + labels.size(1))[:, None]
        loss = model(ids, attention_mask=mask.long(), labels=wanted).loss * len(rows) / len(prompts)
        loss.backward()
        total += loss.detach()
    model.eval()
    model.zero_grad()
    return total


@torch.no_grad()
def _their_answers(model: transformers.PreTrainedModel, prompts: TokenBatch, length: int) -> Tensor:
    width = int(prompts.lengths.max())
    ids, mask = torch.zeros(len(prompts), width, dtype=torch.int64), torch.zeros(len(prompts), width)
    for row, own in enumerate(prompts.lengths.tolist()):
        ids[row, width - own :], mask[row, width - own :] = prompts.ids[row, :own], 1
    written: Tensor = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
    )
    return written[:, width:]


def _compare(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], turns: int) -> dict[str, list[float]]:
    """Seconds of each in turns, after one turn that checks that both give the same."""
    torch.testing.assert_close(ours().float(), theirs().float(), rtol=1e-3, atol=1e-3)
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(turns):
        for name, work in (("ours", ours), ("transformers", theirs)):
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _rates(seconds: dict[str, list[float]], num_tokens: int) -> dict[str, float]:
    """Tokens a second by the medians, and the median of the ratios of turns."""
    rates = {name: round(num_tokens / statistics.median(own), 1) for name, own in seconds.items()}
    pairs = zip(seconds["transformers"], seconds["ours"], strict=True)
    return {**rates, "ratio": round(statistics.median(theirs / ours for theirs, ours in pairs), 2)}


if __name__ == "__main__":
    run_program(CausalSpeedConfig, main)
