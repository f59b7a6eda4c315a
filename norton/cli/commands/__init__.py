"""The commands of the library, a module each: `norton NAME` and `NAME.py` at the top of the repository.

A command is a module with a `main()`, made by `norton.cli.program.script` from a function of a Hydra config, which is
the YAML of the same name in `configs/`.  The first line of the module's docstring says what the command is for.  Its
body reads as the command works: check the settings, open what they name, compute, then write and show.
"""
