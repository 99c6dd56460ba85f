"""Edits as frozen data, and the tensors made of them."""
