"""What test processes inherit already imported; see `spawn`."""

import megatron_retrieval.parallel  # noqa: F401
