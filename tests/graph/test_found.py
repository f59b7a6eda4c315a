"""What random networks found, each as small as it was shown."""

import pytest
from helpers.random_checks import exact, wiring_and_example

# What was wrong → the network that showed it, and the number that its cut is drawn by.
FOUND = {
    "nn.ChannelShuffle shuffled what was left of one group": ((2, "one", "features", [("shuffle", 0, [])]), 0),
    "a number of heads that happened to fit in the trials": (
        (1, "one", "features", [("shuffle unit", 0, []), ("attention", 1, [])]),
        1,
    ),
}


# Blocks of which nothing but the outputs has to stay.
FOLLOWED = {
    "a GroupNorm of one group": ("norm", 5, []),
    "parts by narrow": ("unequal", 3, []),
    "halves by glu": ("glu", 5, []),
    "a spectral norm": ("standardised", 2, []),
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_followed(what):
    _, wiring, _ = wiring_and_example((2, "one", "features", [FOLLOWED[what]]))
    assert set(wiring.left_whole) == {"fc"}


@pytest.mark.parametrize("what", FOUND)
def test_found(what):
    exact(*FOUND[what])
