"""Processes: how a stage's child process is started, reports, uses its machine and ends.

children         the life of a stage's child processes, from their common start to their end
preemption       SIGTERM in a stage's process, and the grace in which it saves its work
die_with_parent  ties a process to its parent, so that none outlives a killed flow
progress         the callable through which a stage reports its progress
background       commits in a thread beside the work that produces the next ones
devices          the GPUs of this machine, and how processes side by side divide them
malloc           keeps freed memory for the next tensors
hidden_imports   hides installed packages that transformers would import without need
failpoints       named points at which the fault suite kills, stops or fails a process
"""
