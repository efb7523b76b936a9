"""Benchmarks of this project's flows against those of other libraries, on the same tasks in one run."""
