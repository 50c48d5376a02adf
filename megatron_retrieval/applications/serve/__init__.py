"""A page and a REST interface to ask questions; needs the extra `serve`."""
