"""Sweeps: a grid of runs over one base configuration, what its cells share, and their results over seeds.

grid     the sweep's configuration, and its cells
order    the order in which cells are computed, so that shared work is done once
results  results of the cells and of settings over seeds, from the store alone
sharing  time and artifacts that cells saved by sharing
tables   tables as cells of text, for the console and for Prefect's UI
figures  the paper's figures from the cells
page     the sweep's page in Prefect's UI
"""
