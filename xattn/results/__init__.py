"""What a verb returns: traces, heat maps, edited images."""
