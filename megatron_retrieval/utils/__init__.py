"""Small helpers without knowledge of retrieval: logging, seeds, files."""
