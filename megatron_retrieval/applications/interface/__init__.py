"""The Python interface: `from megatron_retrieval import Retriever, Reader`."""
