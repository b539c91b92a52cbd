"""What an iteration did, in numbers and pictures."""
