"""`python -m xattn.toyland.training`."""

from .train import main

if __name__ == "__main__":
    main()
