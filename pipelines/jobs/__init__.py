"""One job a file: each has `job()`, and a docstring with its command, time and result."""
