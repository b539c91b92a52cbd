"""Code that tasks share, and that is itself no task.

stage     the decorator of stage tasks: find or make artifacts, retry transient failures, show cached ones
context   what every task of a run knows: its configuration and its inputs
lease     the lease of the run that this process works on
progress  progress bars on a terminal and in Prefect's UI
logs      hides the tracebacks of errors that users can fix
ui        ignores failures of things that are only shown
"""
