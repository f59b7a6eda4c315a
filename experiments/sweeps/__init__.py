"""Sweeps: a grid of settings, every point of it measured once, whatever happens.

`grid` makes points of settings, `identity` says what a point means and names it, `folder` where its result lies;
`measurement` measures it, through `chain` and what points share (`shared`).  `sweeper` goes from the grid to the end,
called by Hydra through `hydra_plugins/norton_sweeper`; `progress` shows how far it is, `report/` what was found.
"""
