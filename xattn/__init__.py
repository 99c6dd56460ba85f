"""See and steer what the words of a prompt do inside a text-to-image diffusion model."""

__version__ = "0.1.0.dev0"
