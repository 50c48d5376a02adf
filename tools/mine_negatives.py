"""Mine hard negatives, and positives if wanted, from the results of BM25 or another retriever."""

from __future__ import annotations

from megatron_retrieval.applications.mining.mining import MineNegativesConfig, mine_negatives
from megatron_retrieval.config.program import run_program
from megatron_retrieval.utils.logging import get_logger


def main(config: MineNegativesConfig) -> None:
    census = mine_negatives(config)
    get_logger().info(
        "%s questions in %s with %s mined hard negatives; %s of them without any hard negative; "
        "%s dropped without a positive",
        f"{census.written:,}",
        config.output,
        f"{census.mined_negatives:,}",
        f"{census.without_hard_negative:,}",
        f"{census.without_positive:,}",
    )


if __name__ == "__main__":
    run_program(MineNegativesConfig, main)
