"""Train retrievers and readers for open-domain question answering, on a laptop and on a cluster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_retrieval.applications.interface.reader import Reader
    from megatron_retrieval.applications.interface.retriever import Retriever

__all__ = ["Reader", "Retriever", "__version__"]
__version__ = "0.1.0"

#: the Python interface, imported where it is asked for: torch takes seconds
_INTERFACE = {"Reader": "reader", "Retriever": "retriever"}


def __getattr__(name: str) -> Any:
    if name not in _INTERFACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.applications.interface.{_INTERFACE[name]}"), name)
