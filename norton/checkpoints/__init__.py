"""Checkpoints: files that rebuild themselves, and whether they hold what they claim.

`files` is the format: `save`, and `read` without running code.  `rebuilding` makes the network again, by the plan in a
file of ours, by the shapes of weights in a published one (`published_layout`).  `sharing` lets the weights of a layer
take few values, `packing` makes files of them small.

`published_names` reads what the name of a published file says, `claims` collects what file, name and registry claim,
and `verification` holds that against what was measured.

Imports all rooms from `common` to `models`.  Plans are made and replayed in `graph.plan`; accuracies are measured in
`training`; detectors have their own checkpoints in the package `detection`.
"""
