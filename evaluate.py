"""Measure a checkpoint and verify what it claims: `python evaluate.py` is `norton evaluate`."""

from norton.cli.commands.evaluate import main

if __name__ == "__main__":
    main()
