"""What the command line shows: read from the store alone."""
