"""Give the questions of a biencoder file hard negatives out of a retriever's results."""

from __future__ import annotations

from megatron_retrieval.config import run_program
from megatron_retrieval.data.biencoder import MineNegativesConfig, mine_negatives
from megatron_retrieval.utils.logging import get_logger


def main(config: MineNegativesConfig) -> None:
    num_questions, num_without = mine_negatives(config)
    get_logger().info(
        "%s questions in %s, %s of them without hard negative", f"{num_questions:,}", config.output, f"{num_without:,}"
    )


if __name__ == "__main__":
    run_program(MineNegativesConfig, main)
