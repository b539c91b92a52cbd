"""The kind `harness`, by the library lm-evaluation-harness.

config    the evaluation: its fields, its stage, its table
section   a task in the configuration
library   tasks, models and results of the library
tasks     stage: the results of a policy, an artifact a task
results   the wanted metric of each task, and their mean
report    results for people, laid out as Table 3
"""
