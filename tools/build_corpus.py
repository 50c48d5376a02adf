"""Build the corpus folder (memory-mapped token ids of sentences and documents) from text files."""

from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus


def main(config: CorpusBuilderConfig) -> None:
    build_corpus(config)


if __name__ == "__main__":
    run_program(CorpusBuilderConfig, main)
