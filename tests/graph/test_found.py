"""What random networks found, each as small as it was shown."""

import pytest
from helpers.random_checks import exact

# What was wrong → the network that showed it, and the number that its cut is drawn by.
FOUND = {
    "nn.ChannelShuffle shuffled what was left of one group": ((2, "one", "features", [("shuffle", 0, [])]), 0),
    "a number of heads that happened to fit in the trials": (
        (1, "one", "features", [("shuffle unit", 0, []), ("attention", 1, [])]),
        1,
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_found(what):
    exact(*FOUND[what])
