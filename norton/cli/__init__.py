"""The commands: everything that knows Hydra.  The top room of the library, which may import all others.

`program.py` wraps a function of a config into a command, with errors in one line and a folder for the results;
`main.py` is `norton COMMAND`, and `commands/` holds the commands of the library, a module each.  They are put together
from `settings.py` (read and checked), `opening.py` (networks, data and images that settings name), `steps.py` (one
step of the chain), `budgets.py` (ranks for a budget), `chain.py` (steps one after the other) and `verification.py`
(what a checkpoint claims); they show with `rows.py`, `tables.py`, `pictures.py` and `hints.py`.

No library function takes a config: it is unpacked here.  `experiments` and `detection` hold more commands and import
this room; no room of `norton` does.
"""
