"""Pretrain a T5 by span corruption: `torchrun pretrain_t5.py --data-path CORPUS ...`."""

from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.t5_pretraining import T5PretrainingConfig, build
from megatron_retrieval.training.training_run import run_training


def main(config: T5PretrainingConfig, topology: ProcessTopology) -> None:
    run_training(build, config, topology)


if __name__ == "__main__":
    run_distributed(T5PretrainingConfig, main)
