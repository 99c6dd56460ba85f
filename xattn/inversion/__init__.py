"""Inversion of photographs: a method a file."""
