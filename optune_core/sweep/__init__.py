"""Sweeps: a grid of runs, the order of its cells, their results, tables and figures."""
