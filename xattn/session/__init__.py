"""The block around a pipeline's calls: patching, clock, rows, sources."""
