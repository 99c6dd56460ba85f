"""Cost of xattn, and truth of its maps: ``python -m benchmarks``."""
