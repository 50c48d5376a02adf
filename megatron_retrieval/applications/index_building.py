"""Build an approximate index of embeddings."""

from __future__ import annotations

from megatron_retrieval.config.parser import write_config
from megatron_retrieval.index.approximate.builder import IndexBuilderConfig, build_index
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.utils.logging import get_logger


def main(config: IndexBuilderConfig) -> None:
    record = RunRecord(config)
    manifest = build_index(config)
    write_config(config, config.output / "config.yaml")
    record.write(config.output, index_bytes=manifest.index_bytes, num_passages=manifest.vectors.num_rows)
    get_logger().info(
        "%s vectors as %s in %s, %s bytes each",
        f"{manifest.vectors.num_rows:,}",
        manifest.index_factory,
        config.output,
        f"{manifest.index_bytes / manifest.vectors.num_rows:.1f}",
    )
