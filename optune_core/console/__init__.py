"""Output of the commands, read from the store."""
