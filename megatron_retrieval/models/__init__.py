from megatron_retrieval.parallel import import_megatron  # noqa: F401  before anything else imports megatron-core
