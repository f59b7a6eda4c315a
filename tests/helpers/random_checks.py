"""What is checked of random networks, each drawn as a specification, see `random_networks`."""

import copy
import random
import warnings
from collections import Counter

import norton
from helpers.dead import largest_error, outputs, with_dead_filters
from helpers.random_networks import build, example_of
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


def exact(spec, number, path=None):
    net, wiring, inputs = wiring_and_example(spec)
    wide = [axis for axis in wiring.writers if wiring.width(axis) > 1 and wiring.frozen.get(axis) != OUTPUT]
    keep = random_keep(wiring, number)
    AXES.update(all=len(wide), cut=len(keep))
    check_equal(cut(net, wiring, keep), net, wiring, keep, inputs)


def by_criterion(spec, number, path=None):
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


def decomposed(spec, number, path=None):
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


CHECKS = {"exact": exact, "by criterion": by_criterion, "decomposed": decomposed, "saved": saved}
