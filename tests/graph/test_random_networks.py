"""Random networks: cut, decomposed and saved, each equals the network that it should equal, to rounding.

`make test` draws the same few hundred each time.  `pytest -m slow tests/graph/test_random_networks.py` draws 20,000,
from a seed that it prints; NORTON_SEED repeats one, NORTON_EXAMPLES says how many.
"""

import copy
import os
import random
import warnings
from collections import Counter

import pytest
import torch
from helpers.dead import largest_error, outputs, with_dead_filters
from helpers.random_networks import build, example_of, specs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import norton
from norton.graph.slicing import cut_
from norton.graph.wiring import OUTPUT

EXACT = 1e-9
CRITERIA = ("l2", "fpgm", "random", "bn_scale")
OPTIONS = norton.PruneOptions(min_filters=1)
AXES = Counter()  # of those with more than one unit, how many there are, and how many can be cut


def wiring_and_example(spec):
    net, inputs = build(spec), example_of(spec)
    return net, norton.wiring_of(net, example=inputs[0] if len(inputs) == 1 else inputs), inputs


def random_keep(wiring, number):
    """Axis → units that stay, of every axis that can be cut."""
    draw = random.Random(number)
    free = [axis for axis in wiring.writers if axis not in wiring.frozen and wiring.width(axis) > 1]
    return {
        axis: sorted(draw.sample(range(wiring.width(axis)), draw.randint(1, wiring.width(axis) - 1))) for axis in free
    }


def cut(net, wiring, keep):
    small = copy.deepcopy(net)
    cut_(small, wiring, keep)
    return small


def check_equal(small, net, wiring, keep, inputs):
    """The cut network equals the one whose removed filters are dead, which is another one than the whole network."""
    expected = outputs(with_dead_filters(net, wiring.gone_filters(keep)), inputs)
    assert largest_error(outputs(small, inputs), expected) < EXACT
    return largest_error(outputs(net, inputs), expected)


def exact(spec, number):
    net, wiring, inputs = wiring_and_example(spec)
    wide = [axis for axis in wiring.writers if wiring.width(axis) > 1 and wiring.frozen.get(axis) != OUTPUT]
    keep = random_keep(wiring, number)
    AXES.update(all=len(wide), cut=len(keep))
    check_equal(cut(net, wiring, keep), net, wiring, keep, inputs)


def by_criterion(spec, number):
    net, wiring, inputs = wiring_and_example(spec)
    criterion = CRITERIA[number % len(CRITERIA)]
    small = pruned(net, inputs, criterion)
    if small is not None:
        keep = {wiring.axis_of(name): kept for name, kept in small.plan[-1]["keep"].items()}
        check_equal(small, net, wiring, keep, inputs)


def pruned(net, inputs, criterion):
    """None where nothing can be pruned."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = inputs[0] if len(inputs) == 1 else inputs
            return norton.prune(net, 0.4, criterion=criterion, options=OPTIONS, example=example)
    except norton.InputError as error:
        assert "can be pruned" in str(error) or "bn_scale" in str(error), error
        return None


def decomposed(spec, number):
    net, inputs = build(spec), example_of(spec)
    method = ("svd", "tucker", "cp")[number % 3]
    try:
        small = norton.decompose(net, {"*": {"fraction": 1.0}}, method)
    except norton.InputError as error:
        assert "takes" in str(error) or "no layer" in str(error), error  # that the method has nothing to do here
        return
    assert largest_error(outputs(small, inputs), outputs(net, inputs)) < 1e-6


def saved(spec, number, path):
    net, inputs = build(spec), example_of(spec)
    small = pruned(net, inputs, "l2")
    if small is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = norton.load(norton.save(small, path / "net.pt"), net=build(spec))
    assert largest_error(outputs(again, inputs), outputs(small, inputs)) < EXACT
    wiring = norton.wiring_of(again, example=inputs[0] if len(inputs) == 1 else inputs)
    keep = random_keep(wiring, number)
    check_equal(cut(again, wiring, keep), again, wiring, keep, inputs)


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


CHECKS = {"exact": exact, "by criterion": by_criterion, "decomposed": decomposed, "saved": saved}
FEW = [("exact", 1), ("exact", 2), ("exact", 3), ("by criterion", 4), ("by criterion", 5), ("decomposed", 6), ("saved", 7)]


def run(name, count, number, tmp_path):
    check = CHECKS[name] if name != "saved" else lambda spec, number: saved(spec, number, tmp_path)
    draw(check, count, number)


@pytest.mark.parametrize("name, number", FEW)
def test_random_networks(name, number, tmp_path):
    run(name, 54 if name == "exact" else 35, number, tmp_path)


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
