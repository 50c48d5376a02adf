"""What test processes inherit already imported: the package, and libraries that it uses; see `spawn`."""

import contextlib
import importlib
import pkgutil

import megatron_retrieval

_LIBRARIES = (
    "pytest",
    "sentence_transformers",
    "transformers.models.bert.modeling_bert",
    "transformers.models.dpr.modeling_dpr",
    "transformers.models.t5.modeling_t5",
)

for _module in pkgutil.walk_packages(megatron_retrieval.__path__, f"{megatron_retrieval.__name__}."):
    if not _module.name.endswith(("__main__", ".preload")):
        with contextlib.suppress(ImportError):  # of a library that this machine lacks
            importlib.import_module(_module.name)

for _name in _LIBRARIES:
    importlib.import_module(_name)
