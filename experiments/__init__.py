"""Programs that chain or repeat the steps of `norton`, each a Hydra program on `configs/` with a `main()`.

`pipeline` runs the chain once, `ablation` a grid of points; `report` shows what a grid found.  `sensitivity`,
`nmse`, `features` and `selection` look at one effect each; `deploy`, `throughput` and `storage` at what comes out;
`paper_tables` and `verify` hold figures against published ones.

`sweeps/` holds the parts of `ablation` and `report`, `deployment/` those of `deploy`, `paper/` the published figures.
May import `norton` and, lazily, `detection`; neither of them imports this package.
"""
