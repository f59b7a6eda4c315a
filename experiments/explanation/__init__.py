"""What `experiments.features` is made of: the maps of networks side by side."""
