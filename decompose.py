"""Decompose the convolutions of a network: `python decompose.py` is `norton decompose`."""

from norton.cli.commands.decompose import main

if __name__ == "__main__":
    main()
