"""Ranks and pruning rates from a budget: a share of MACs or parameters to keep.

`choosing` has the verb, `choose_ranks`; `choice` is what it returns.  `costs` counts a network with its layers at other
ranks.  `layer_errors` measures what a layer's outputs lose, `rank_curves` at each of its ranks, `pruning_curves` when
channels that it reads go.  `search` finds the least sum of errors within the budget, by a `knapsack` that knows nothing
of networks.

Imports all rooms from `common` to `models`.  Ranks by a rule, without a budget, are in `decomposition.ranks`; rates by
a rule in `pruning.rates` and `pruning.allocation`.  The settings `budget.macs` and `budget.params` are read in `cli`.
"""
