"""Generate the mini encyclopedia that the quickstart and the tests learn from."""

from megatron_retrieval.config.program import run_program
from megatron_retrieval.testing.encyclopedia.output import EncyclopediaConfig, write_encyclopedia
from megatron_retrieval.utils.logging import get_logger


def main(config: EncyclopediaConfig) -> None:
    made = write_encyclopedia(config)
    counts = (
        f"{len(made.passages):,} passages, {len(made.train):,} training and {len(made.evaluation):,} held-out questions"
    )
    get_logger().info("wrote %s to %s", counts, config.output)


if __name__ == "__main__":
    run_program(EncyclopediaConfig, main)
