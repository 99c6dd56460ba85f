"""Training of the bundled models: `python -m xattn.toyland.training`; not part of the wheel."""
