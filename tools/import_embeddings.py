"""Turn the pickled embeddings of DPR, Megatron or EMDR2 into a store of embeddings."""

from __future__ import annotations

from megatron_retrieval.applications.embedding_import import ImportEmbeddingsConfig, import_embeddings
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.utils.logging import get_logger


def main(config: ImportEmbeddingsConfig, topology: ProcessTopology) -> None:
    record = RunRecord(config, topology.world_size)
    store = import_embeddings(config, topology)
    write_config(config, config.output / "config.yaml")
    record.write(config.output, num_passages=len(store))
    get_logger().info("%s passages, %d dimensions, in %s", f"{len(store):,}", store.dimension, config.output)


if __name__ == "__main__":
    run_distributed(ImportEmbeddingsConfig, main)
