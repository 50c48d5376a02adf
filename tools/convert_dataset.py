"""Convert a question-answering data set, or documents, into passages, questions and DPR training data."""

from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.convert.registry import DatasetConverterConfig
from megatron_retrieval.data.convert.run import convert_dataset


def main(config: DatasetConverterConfig) -> None:
    convert_dataset(config)


if __name__ == "__main__":
    run_program(DatasetConverterConfig, main)
