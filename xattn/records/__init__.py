"""What is kept of a run, in memory and on disk."""
