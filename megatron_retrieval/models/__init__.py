from megatron_retrieval.parallel import bootstrap  # noqa: F401  before anything else imports megatron-core
