"""Convert a question-answering dataset, or documents, into passages, questions and training data."""

from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.convert.converter import DatasetConverterConfig
from megatron_retrieval.data.convert.dataset import convert_dataset


def main(config: DatasetConverterConfig) -> None:
    convert_dataset(config)


if __name__ == "__main__":
    run_program(DatasetConverterConfig, main)
