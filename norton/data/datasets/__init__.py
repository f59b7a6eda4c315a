"""One file per dataset: each registers a function (root, seed, **options) -> Splits under its name."""
