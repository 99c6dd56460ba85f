"""Words and tokens of a prompt; knows no model."""
