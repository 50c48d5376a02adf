"""The engine's outside: process topology, collectives, data parallelism, optimizer. All that differs between one
process, many, CPU and GPU is chosen here."""

from megatron_retrieval.parallel import bootstrap  # noqa: F401  before anything else imports megatron-core
