"""Process topology, collectives, data parallelism and the optimizer: all that depends on the number of processes and on
the device."""

from megatron_retrieval.parallel import import_megatron  # noqa: F401  before anything else imports megatron-core
