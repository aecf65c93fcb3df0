"""Clocks and workloads of the benchmark tasks."""
