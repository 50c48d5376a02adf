"""Pretrain BERT by masked language modelling: `torchrun pretrain_bert.py --data-path CORPUS ...`."""

from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.bert_pretraining import BertPretrainingConfig, build
from megatron_retrieval.training.training_run import run_training


def main(config: BertPretrainingConfig, topology: ProcessTopology) -> None:
    run_training(build, config, topology)


if __name__ == "__main__":
    run_distributed(BertPretrainingConfig, main)
