"""What denoisers are like, and how pipelines are loaded."""
