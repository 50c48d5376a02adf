"""Convert a question-answering dataset into passages, questions and training data of DPR's formats."""

from megatron_retrieval.config import run_program
from megatron_retrieval.data.squad import DatasetConverterConfig, convert_squad


def main(config: DatasetConverterConfig) -> None:
    convert_squad(config)


if __name__ == "__main__":
    run_program(DatasetConverterConfig, main)
