"""Evaluations of a run's policies. One flow, one command; a folder a kind."""
