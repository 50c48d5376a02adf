"""Answers a second of the fusion reader on CPU, against a reader of the same weights written on Hugging Face's T5.

The other reader does what a careful user of `transformers` does: the texts of a batch of questions go through the
encoder at once, padded to the longest, their states stand one behind the other, and `generate` reads them with the mask
of all. Its best batch size is found first. Then the two take turns, and a round's ratio is that of two neighbours: what
other jobs take from the machine meets both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from megatron_retrieval.checkpoint.huggingface.t5 import import_t5, t5_config_from_hf, t5_config_to_hf
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.models.encoded_sources import EncodedSources
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.t5 import PAD_ID, T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.testing.tiny_hf import attention_mask
from megatron_retrieval.types.tokens import TokenBatch, rows_of_groups

Answers = list[list[int]]
Read = Callable[[], Answers]


@dataclass(kw_only=True, frozen=True)
class SmallT5Config(T5Config):
    """Shape of the random T5; the defaults are T5 1.0, small."""

    num_layers: int = 6
    """Transformer layers of the encoder."""
    hidden_size: int = 512
    """Width of the hidden states."""
    num_attention_heads: int = 8
    """Attention heads."""
    ffn_hidden_size: int = 2048
    """Width of the feed-forward layers."""


@dataclass(kw_only=True, frozen=True)
class ReadingSpeedConfig(Checked):
    """Compare the speed of the fusion reader with one on Hugging Face's T5, answer by answer and round by round."""

    shape: SmallT5Config = field(default_factory=SmallT5Config)
    """The model."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How answers are written."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How our reader is run."""
    num_questions: PositiveInt = 12
    """Questions of a round."""
    num_passages: PositiveInt = 10
    """Texts to each question."""
    shortest_text: PositiveInt = 130
    """Texts have from so many tokens, each number as likely as another: a question, a title and 100 words."""
    longest_text: int = 200
    """Texts have up to so many tokens."""
    hf_batch_sizes: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """Questions that the other reader reads at once; of several, those are taken with which it is fastest."""
    hf_attention: Literal["sdpa", "eager"] = "sdpa"
    """How the other reader's attention is computed."""
    hf_padding: Literal["longest", "max-length"] = "longest"
    """The other reader's texts are padded to the longest of the batch, or all to --longest-text, as FiD's code does."""
    num_rounds: PositiveInt = 5
    """How often both read all questions."""
    num_threads: int = 1
    """Threads of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest_text > self.longest_text:
            raise ConfigError(
                f"--shortest-text {self.shortest_text} must not be above --longest-text {self.longest_text}."
            )


@dataclass(frozen=True)
class Seconds:
    """What a round took."""

    wall: float
    cpu: float


def main(config: ReadingSpeedConfig) -> None:
    torch.set_num_threads(config.num_threads)
    theirs, texts = _random_t5(config), _random_texts(config)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        read_ours = partial(_read, FusionReader(_same_t5(theirs, config, topology)), texts, config, topology)
        read_theirs = _fastest(theirs.to(config.encode.on(topology.device)), texts, config)
        _compare(read_ours(), read_theirs(), must_be_equal=config.encode.on(topology.device) == torch.float32)
        rounds = []
        for number in range(1, config.num_rounds + 1):
            own, other = _timed(read_ours), _timed(read_theirs)
            rounds.append((own, other))
            _say(f"round {number}: ours {_figures(own, config)}, Hugging Face's {_figures(other, config)}")
    _say(_table(rounds, config))


@torch.no_grad()
def _random_t5(config: ReadingSpeedConfig) -> transformers.T5ForConditionalGeneration:
    """One whose answers depend on what it reads; none of them ends before its limit."""
    torch.manual_seed(0)
    settings = transformers.T5Config(**t5_config_to_hf(config.shape))
    model = transformers.T5ForConditionalGeneration._from_config(settings, attn_implementation=config.hf_attention)
    if config.shape.untie_embeddings_and_output_weights:
        # newer releases share the two matrices until a checkpoint with different ones comes
        model.lm_head.weight = nn.Parameter(torch.randn(model.shared.weight.shape))
    model.lm_head.weight[T5.end_id] = 0
    # words that weigh less than what is made of them, or the newest token would always be followed by itself
    model.shared.weight.mul_(0.05)
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.q.weight.mul_(4)  # eyes for few of the tokens that it reads
    return model.eval()


def _random_texts(config: ReadingSpeedConfig) -> TokenBatch:
    """Those of a question stand together."""
    random = torch.Generator().manual_seed(1)
    num_texts = config.num_questions * config.num_passages
    lengths = torch.randint(config.shortest_text, config.longest_text + 1, (num_texts,), generator=random)
    ids = torch.randint(3, config.shape.vocab_size, (num_texts, config.longest_text), generator=random)
    return TokenBatch(ids, lengths)


def _same_t5(
    theirs: transformers.T5ForConditionalGeneration, config: ReadingSpeedConfig, topology: ProcessTopology
) -> T5:
    shape = t5_config_from_hf(theirs.config.to_dict(), "the random T5")
    full = import_t5(theirs.state_dict(), shape, "the random T5")
    ours = T5(shape, topology, config.encode.on(topology.device)).eval()
    fill_model(ours, full.keys(), full.__getitem__, topology, source="the random T5")
    return ours


@torch.inference_mode()
def _read(reader: FusionReader, texts: TokenBatch, config: ReadingSpeedConfig, topology: ProcessTopology) -> Answers:
    """As `GeneratedAnswerer` reads: questions with as many tokens to read stand together."""
    num_texts = config.num_passages
    order = texts.lengths.view(-1, num_texts).sum(1).argsort(descending=True, stable=True)
    answers: Answers = [[]] * len(order)
    for index in order.split(max(1, config.encode.micro_batch_size // num_texts)):
        is_real = torch.ones(len(index), num_texts, dtype=torch.bool)
        memory = reader.encode(texts.rows(rows_of_groups(index, num_texts)), is_real)
        found = generate(EncodedSources(reader.model, memory), config.generation, topology.groups.tp).best
        for place, ids, length in zip(index.tolist(), found.ids.tolist(), found.lengths.tolist(), strict=True):
            answers[place] = ids[:length]
    return answers


@torch.inference_mode()
def _read_theirs(
    model: transformers.T5ForConditionalGeneration, texts: TokenBatch, config: ReadingSpeedConfig, batch_size: int
) -> Answers:
    answers: Answers = []
    for index in torch.arange(config.num_questions).split(batch_size):
        ids, mask = _padded(texts, rows_of_groups(index, config.num_passages), config.hf_padding)
        states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        found = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states.view(len(index), -1, states.size(2))),
            attention_mask=mask.view(len(index), -1),
            max_new_tokens=config.generation.max_answer_length,
            min_new_tokens=config.generation.min_answer_length or None,
            num_beams=config.generation.num_beams,
            length_penalty=config.generation.length_penalty,
            early_stopping=config.generation.stop_at_first_answers,
            do_sample=False,
        )
        answers += found[:, 1:].tolist()
    return answers


def _padded(texts: TokenBatch, rows: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of some of the texts, each [n, T]."""
    width = int(texts.lengths[rows].max()) if padding == "longest" else texts.ids.size(1)
    batch = TokenBatch(texts.ids[rows, :width], texts.lengths[rows])
    mask = attention_mask(batch)
    return batch.ids.masked_fill(mask == 0, PAD_ID), mask


def _fastest(model: transformers.T5ForConditionalGeneration, texts: TokenBatch, config: ReadingSpeedConfig) -> Read:
    """The other reader with the best of its batch sizes."""
    reads = {size: partial(_read_theirs, model, texts, config, size) for size in config.hf_batch_sizes}
    if len(reads) == 1:
        return next(iter(reads.values()))
    seconds: dict[int, float] = {}
    for size, read in reads.items():
        read()  # warms up
        taken = _timed(read)
        seconds[size] = taken.cpu
        _say(f"Hugging Face's reader, {size} questions at once: {_figures(taken, config)}")
    return reads[min(seconds, key=seconds.__getitem__)]


def _timed(read: Read) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    read()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _compare(ours: Answers, theirs: Answers, *, must_be_equal: bool) -> None:
    """Raises MismatchError: answers differ though they must not; in half precision, rounding decides between tokens
    that are about as likely."""
    num_equal = sum(own == other for own, other in zip(ours, theirs, strict=True))
    _say(f"{num_equal} of {len(ours)} answers are equal; {len(set(map(tuple, ours)))} are different from one another")
    if must_be_equal and num_equal < len(ours):
        raise MismatchError("the two readers write different answers; their speeds cannot be compared.")


def _figures(taken: Seconds, config: ReadingSpeedConfig) -> str:
    return f"{config.num_questions / taken.wall:.2f} answers a second ({taken.wall:.1f} s, {taken.cpu:.1f} s of CPU)"


def _table(rounds: list[tuple[Seconds, Seconds]], config: ReadingSpeedConfig) -> str:
    rows = []
    for name in ("wall", "cpu"):
        own, other = ([getattr(taken, name) for taken in side] for side in zip(*rounds, strict=True))
        speeds = [f"{config.num_questions / statistics.median(seconds):.2f}" for seconds in (own, other)]
        ratios = [theirs / ours for ours, theirs in zip(own, other, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([f"a second of {name} time", *speeds, f"{statistics.median(ratios):.2f}", spread])
    return text_table(["answers, median", "ours", "Hugging Face's", "ratio", "rounds"], rows)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_program(ReadingSpeedConfig, main)
