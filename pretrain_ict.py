"""Pretrain a dual encoder by the Inverse Cloze Task; runs under `python` and under `torchrun`."""

from __future__ import annotations

from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.ict_pretraining import IctPretrainingConfig, build
from megatron_retrieval.training.training_run import run_training


def main(config: IctPretrainingConfig, topology: ProcessTopology) -> None:
    run_training(build, config, topology)


if __name__ == "__main__":
    run_distributed(IctPretrainingConfig, main)
