"""Downstream tasks, started by `tasks/main.py --task NAME`."""
