"""The same as `megatron-retrieval train retro`, from a checkout, under `python` and under `torchrun`."""

from megatron_retrieval.cli import run_verb

if __name__ == "__main__":
    run_verb("train retro")
