"""Kind of evaluation."""
