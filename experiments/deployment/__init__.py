"""The parts of `experiments.deploy`: networks and images, the variants of a network, their measurements, results."""
