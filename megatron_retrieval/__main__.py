"""`python -m megatron_retrieval` is the console script `megatron-retrieval`."""

from megatron_retrieval.cli import main

if __name__ == "__main__":
    main()
