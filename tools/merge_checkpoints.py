"""The same as `megatron-retrieval merge checkpoints`, from a checkout."""

from megatron_retrieval.cli import run_verb

if __name__ == "__main__":
    run_verb("merge checkpoints")
