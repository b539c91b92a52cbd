"""One thin Prefect task a stage. Method and storage layout live in optune_core."""
