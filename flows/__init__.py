"""Prefect flows: the order in which tasks run. They hold neither the maths of the method nor paths of the storage."""
