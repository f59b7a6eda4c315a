"""Random networks: cut, decomposed and saved, each equals the network that it should equal, to rounding.

`make test` draws the same few hundred each time.  `pytest -m slow tests/graph/test_random_networks.py` draws 20,000,
from a seed that it prints; NORTON_SEED repeats one, NORTON_EXAMPLES says how many.
"""

import os
import random

import pytest
import torch
from helpers.dead import largest_error, outputs
from helpers.random_checks import AXES, CHECKS, EXACT, check_equal, cut, random_keep, wiring_and_example
from helpers.random_networks import specs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st


def draw(check, count, number):
    """Check so many random networks; the smallest that fails is shown."""

    def checked(spec, number):
        check(spec, number)

    checked = given(spec=specs(), number=st.integers(0, 1 << 16))(checked)
    phases = (Phase.generate, Phase.shrink)
    quiet = list(HealthCheck)
    seed(number)(
        settings(max_examples=count, deadline=None, database=None, phases=phases, suppress_health_check=quiet)(checked)
    )()


FEW = [
    ("exact", 1),
    ("exact", 2),
    ("exact", 3),
    ("by criterion", 4),
    ("by criterion", 5),
    ("decomposed", 6),
    ("saved", 7),
]


def run(name, count, number, tmp_path):
    draw(lambda spec, number: CHECKS[name](spec, number, tmp_path), count, number)


FEW_EXAMPLES = {"exact": 72, "by criterion": 20, "decomposed": 30, "saved": 14}  # 300 in all


@pytest.mark.parametrize("name, number", FEW)
def test_random_networks(name, number, tmp_path):
    run(name, FEW_EXAMPLES[name], number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("name", CHECKS)
def test_many_random_networks(name, part, tmp_path, capsys):
    first = int(os.environ.get("NORTON_SEED", random.randrange(1 << 30)))
    share = 0.4 if name == "exact" else 0.2
    with capsys.disabled():
        print(f"\n{name}, part {part}: NORTON_SEED={first}")
    AXES.clear()
    run(name, int(share * int(os.environ.get("NORTON_EXAMPLES", "20000")) / 8), first + part, tmp_path)
    if AXES:
        with capsys.disabled():
            print(f"\n{AXES['cut']} of {AXES['all']} axes of more than one unit can be cut")


CERTAIN = (2, "one", "features", [("c2f", 1, [[("conv", 0, [])]]), ("residual", 0, [[("squeeze", 0, [])]])])


def test_a_wrong_cut_is_noticed():
    """The oracle fails where units are shifted by one, and its outputs are not those of the whole network."""
    net, wiring, inputs = wiring_and_example(CERTAIN)
    keep = random_keep(wiring, 1)
    assert len(keep) > 4
    assert check_equal(cut(net, wiring, keep), net, wiring, keep, inputs) > 1e-3
    for axis, kept in keep.items():
        shifted = sorted((unit + 1) % wiring.width(axis) for unit in kept)
        with pytest.raises(AssertionError):
            check_equal(cut(net, wiring, {**keep, axis: shifted}), net, wiring, keep, inputs)


def test_offsets_of_dead_filters_are_silent_and_others_are_not():
    net, wiring, inputs = wiring_and_example(CERTAIN)
    axis = wiring.axis_of("stem")
    keep = {axis: list(range(1, wiring.width(axis)))}
    before = outputs(cut(net, wiring, keep), inputs)
    with torch.no_grad():
        net.norm.bias[0] += 1
    assert largest_error(outputs(cut(net, wiring, keep), inputs), before) < EXACT
    check_equal(cut(net, wiring, keep), net, wiring, keep, inputs)
    with torch.no_grad():
        net.norm.bias[1] += 1
    assert largest_error(outputs(cut(net, wiring, keep), inputs), before) > 1e-3
    check_equal(cut(net, wiring, keep), net, wiring, keep, inputs)
