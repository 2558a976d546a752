"""Ours beside its peers: each file is one command, `python -m benchmarks.NAME`."""
