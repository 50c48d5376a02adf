"""Ranks that embed stand beside those that train: no part of their groups, and gone when they are gone."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, TCPStore

from megatron_retrieval.config.parser import field_flags
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.job import Job
from megatron_retrieval.parallel.topology import EmbeddingRanksConfig, ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.testing.spawn import run_on_ranks


def _place(topology: ProcessTopology) -> list[Any]:
    """Where this process stands; those that embed wait for the others."""
    total = torch.ones(())
    dist.all_reduce(total, group=topology.world_group)
    place = [topology.rank, topology.world_size, topology.tp_size, topology.dp_size, topology.is_main, int(total)]
    if topology.side_rank is None:
        time.sleep(0.5)
        return [*place, None]
    assert topology.job is not None
    num_looks = 0
    while not topology.job.has_ended():
        num_looks += 1
        time.sleep(0.01)
    assert num_looks > 1
    return [*place, topology.side_rank]


def test_embedding_ranks_are_no_part_of_the_trainers_world() -> None:
    ranks = run_on_ranks(_place, 4, tensor_model_parallel_size=2, num_embedding_ranks=2)
    assert ranks == [
        [0, 2, 2, 1, True, 2, None],
        [1, 2, 2, 1, False, 2, None],
        [0, 1, 1, 1, False, 1, 0],
        [0, 1, 1, 1, False, 1, 1],
    ]


def test_training_ends_with_rank_0_or_with_a_failure() -> None:
    job = Job(HashStore())
    with job.training(rank=1):
        assert not job.has_ended()
    assert not job.has_ended(), "rank 0 has something to save"
    with job.training(rank=0):
        assert not job.has_ended()
    assert job.has_ended()
    failing = Job(HashStore())
    with pytest.raises(ValueError, match="no luck"), failing.training(rank=1):
        raise ValueError("no luck")
    assert failing.has_ended()


def test_training_has_ended_when_nobody_keeps_the_store() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = Job(TCPStore("127.0.0.1", server.port))
    assert not job.has_ended()
    del server
    assert job.has_ended()


@pytest.mark.parametrize(("num_processes", "tensor_parallel", "embedding"), [(1, 1, 1), (4, 2, 1), (2, 1, 3)])
def test_what_is_left_must_be_able_to_train(
    monkeypatch: pytest.MonkeyPatch, num_processes: int, tensor_parallel: int, embedding: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    config = EmbeddingRanksConfig(
        tensor_model_parallel_size=tensor_parallel, num_embedding_ranks=embedding, device="cpu"
    )
    message = rf"the number of processes \({num_processes - embedding} beside {embedding} that embed\)"
    with pytest.raises(ConfigError, match=message), process_topology(config):
        pass


def test_only_jobs_that_embed_beside_training_have_the_flag() -> None:
    assert "num-embedding-ranks" not in [flag for flag, _, _ in field_flags(ParallelConfig)]
    assert "num-embedding-ranks" in [flag for flag, _, _ in field_flags(EmbeddingRanksConfig)]
    with pytest.raises(ConfigError, match="--num-embedding-ranks -1"):
        EmbeddingRanksConfig(num_embedding_ranks=-1)
