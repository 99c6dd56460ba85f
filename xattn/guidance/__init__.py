"""Goals for the attention of a sampling, and what steers the latents towards them."""
