"""What every room uses and what belongs to none.

`errors` has the error that a user can act on and the warning that says how a result came about; `checks` are the checks
of settings that are a boolean or a number; `files` writes files whole or not at all; `registry` maps names to methods,
so that a file in a folder is enough to add one.

Imports nothing of this project, and knows neither networks nor torch.  All other rooms may import it; what only one
room needs stays there.
"""
