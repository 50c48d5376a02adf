"""Train retrievers and readers for open-domain question answering, on a laptop and on a cluster."""

__version__ = "0.1.0"
