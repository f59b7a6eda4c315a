"""Prune the filters of a network, decomposed or not: `python prune.py` is `norton prune`."""

from norton.cli.commands.prune import main

if __name__ == "__main__":
    main()
