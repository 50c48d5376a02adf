"""Build the evidence folder (memory-mapped passages and token ids) from passage files."""

from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence


def main(config: EvidenceBuilderConfig) -> None:
    build_evidence(config)


if __name__ == "__main__":
    run_program(EvidenceBuilderConfig, main)
