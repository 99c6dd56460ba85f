"""What xattn costs, and whether what it shows is true: ``python -m benchmarks``."""
