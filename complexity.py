"""Count the MACs and parameters of a network: `python complexity.py` is `norton complexity`."""

from norton.cli.commands.complexity import main

if __name__ == "__main__":
    main()
