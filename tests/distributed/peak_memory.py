"""Two ICT steps at a global batch, with gradient caching; prints the process's peak memory in MiB.

python tests/distributed/peak_memory.py GLOBAL_BATCH_SIZE [HIDDEN_SIZE SEQ_LENGTH MICRO_BATCH_SIZE]
"""

from __future__ import annotations

import dataclasses
import itertools
import resource
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from megatron_retrieval.data.examples.batches import BatchLoader, EpochSampler
from megatron_retrieval.data.examples.ict import IctDataConfig, ict_datasets
from megatron_retrieval.data.layouts.blocks import BlockConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep

NUM_BLOCKS = 8192
SENTENCES_PER_BLOCK = 4


@dataclass(frozen=True)
class _Corpus:
    """Documents of one block each, of random words."""

    sentences: Ragged
    documents: Rows
    titles: Ragged
    special: SpecialIds
    vocabulary: Any = field(default_factory=lambda: SimpleNamespace(is_separable=True))


def _corpus(seq_length: int) -> _Corpus:
    length = (seq_length - 3) // SENTENCES_PER_BLOCK
    num_tokens = NUM_BLOCKS * SENTENCES_PER_BLOCK * length
    tokens = np.random.default_rng(0).integers(4, 64, num_tokens).astype(np.uint16)
    return _Corpus(
        Ragged(tokens, np.arange(0, num_tokens + 1, length)),
        np.arange(0, NUM_BLOCKS * SENTENCES_PER_BLOCK + 1, SENTENCES_PER_BLOCK),
        Ragged(np.empty(0, np.uint16), to_offsets(np.zeros(NUM_BLOCKS, np.int64))),
        SpecialIds(begin=1, end=2, pad=0, mask=3),
    )


def main(global_batch_size: int, hidden_size: int = 32, seq_length: int = 32, micro_batch_size: int = 64) -> None:
    torch.set_num_threads(1)
    config = IctDataConfig(blocks=BlockConfig(data_path="", valid_fraction=0))
    text_format = TextFormatConfig(query_seq_length=min(64, seq_length), retriever_seq_length=seq_length)
    dataset, _ = ict_datasets(_corpus(seq_length), config, text_format, seed=0)
    shape = tiny_dual_encoder_config()
    bert = dataclasses.replace(shape.encoder, hidden_size=hidden_size, max_position_embeddings=seq_length)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = DualEncoder(dataclasses.replace(shape, encoder=bert), topology, seed=0)
        step = ContrastiveStep(model, ContrastiveConfig(micro_batch_size=micro_batch_size), topology, seed=0)
        loader = BatchLoader(dataset, EpochSampler(len(dataset), global_batch_size, seed=0))
        for iteration, batch in enumerate(itertools.islice(loader.iterate(), 2)):
            step.forward_backward(batch, iteration, 1.0)
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
