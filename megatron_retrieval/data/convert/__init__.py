"""Public data sets converted to this project's files."""
