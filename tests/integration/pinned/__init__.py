"""Tiny runs whose results are recorded, so that work on form and layout can be seen to change none of them.

runs    the grid: configurations, and how runs and evaluations are started
facts   what they computed, read from the store's files
measure perform them, and return the facts
values  recording and comparing
"""
