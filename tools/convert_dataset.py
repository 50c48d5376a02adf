"""Convert a question-answering dataset, or documents, into passages, questions and training data."""

from megatron_retrieval.config import run_program
from megatron_retrieval.data.conversion import convert_dataset
from megatron_retrieval.data.converted import DatasetConverterConfig


def main(config: DatasetConverterConfig) -> None:
    convert_dataset(config)


if __name__ == "__main__":
    run_program(DatasetConverterConfig, main)
