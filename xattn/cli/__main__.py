"""``python -m xattn.cli``: the command line, where a launcher wants a module."""

from xattn.cli import main

main()
