"""Everything around a pipeline's calls: patching, clock, rows, origins."""
