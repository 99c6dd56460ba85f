"""Instruments: what observes attention or changes it inside a block."""
