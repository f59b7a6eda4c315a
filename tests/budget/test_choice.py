"""Ranks from a budget, against every combination counted and measured literally."""

import copy
import itertools
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run_here
from conftest import randomise_
from torch import nn

import norton
from norton import Calibration, InputError, choose_ranks
from norton.budget.choice import Choice
from norton.budget.pruning_curves import lost_rows, pruning_curves_of
from norton.calibration.metric import Metric
from norton.checkpoints.files import read
from norton.graph.plan import OPERATIONS, plan_of

QUICK = {"starts": 1, "iterations": 20}
AS_MEASURED = {"objective": "outputs", "calibration": Calibration(sequential=False, sweeps=1), **QUICK}


class Toy(nn.Module):
    """Three convolutions of different kinds, one of which has neither bias nor BatchNorm behind it."""

    input_size = (3, 11, 11)

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, (3, 2), padding=1)
        self.conv2 = nn.Conv2d(12, 10, 3, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(10)
        self.conv3 = nn.Conv2d(10, 14, (1, 3), padding=(0, 1), bias=False)
        self.fc = nn.Linear(14, 5)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def toy():
    return randomise_(Toy())


@pytest.fixture(scope="module")
def images():
    smooth = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(smooth, (11, 11), mode="bilinear")


@pytest.fixture(scope="module")
def narrow():
    """Thirteen convolutions, few filters."""
    return randomise_(norton.build("vgg_16_bn", 0, [0.9] * 13))


def inputs_of(net, name, images):
    kept = []
    hook = net.get_submodule(name).register_forward_pre_hook(lambda layer, args: kept.append(args[0]))
    with torch.no_grad():
        net(images)
    hook.remove()
    return kept[0]


def literal_error(net, name, change, images):
    """Relative squared output error by F.unfold, of what varies where constants are taken up."""
    layer, x = net.get_submodule(name), inputs_of(net, name, images).double()
    if isinstance(layer, nn.Linear):
        columns = x.T
    else:
        columns = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
        columns = columns.transpose(0, 1).flatten(1)
    if layer.bias is not None or name == "conv2":
        columns = columns - columns.mean(1, keepdim=True)
    whole = layer.weight.detach().double().flatten(1) @ columns
    lost = change.double().flatten(1) @ columns
    return (lost.square().sum() / whole.square().sum()).item()


def fitted_error(net, name, rank, images, **options):
    """The literal error of one layer decomposed as the public function does it."""
    options |= {"images": images} if "objective" in options else {}
    small = norton.decompose(net, {name: rank}, **options)
    change = net.get_submodule(name).weight - small.get_submodule(name).composed_weight()
    return literal_error(net, name, change.detach(), images)


@pytest.fixture(scope="module")
def every(toy, images):
    """Layer → rank → literal error; and every combination of ranks with its MACs, parameters and error."""
    full = {"conv1": 6, "conv2": 9, "conv3": 3}
    errors = {}
    for name, most in full.items():
        found = [fitted_error(toy, name, rank, images, **AS_MEASURED) for rank in range(1, most + 1)]
        errors[name] = {None: 0.0} | dict(enumerate(np.minimum.accumulate(found), start=1))
    combinations = {}
    for ranks in itertools.product(*(errors[name] for name in full)):
        chosen = dict(zip(full, ranks, strict=True))
        shaped = copy.deepcopy(toy)
        decided = {name: rank for name, rank in chosen.items() if rank}
        OPERATIONS["decompose"](shaped, {"method": "cp", "ranks": decided})
        cost = norton.complexity(shaped)
        error = sum(errors[name][rank] for name, rank in chosen.items())
        combinations[ranks] = cost.macs, cost.params, error
    return errors, combinations


@pytest.mark.parametrize(
    "budget", [{"macs": 0.6}, {"macs": 0.75}, {"macs": 0.93}, {"params": 0.5}, {"params": 0.75}], ids=str
)
@pytest.mark.filterwarnings("ignore:.*too coarse")
def test_the_best_of_all_combinations(toy, images, every, budget):
    errors, combinations = every
    [(what, share)] = budget.items()
    place = ("macs", "params").index(what)
    most = share * combinations[None, None, None][place]
    within = [found for found in combinations.values() if found[place] <= most]
    best = min(found[2] for found in within)
    if min(found[place] for found in within if found[2] == best) < 0.99 * most:  # then one nearer may be taken
        dense = combinations[None, None, None][place]
        alone = {name: [(None,) * i, (None,) * (2 - i)] for i, name in enumerate(errors)}
        saving = {
            name: [None, *(r for r in errors[name] if r and combinations[(*a, r, *b)][place] < dense)]
            for name, (a, b) in alone.items()
        }
        within = [combinations[ranks] for ranks in itertools.product(*saving.values())]
        nearer = [found[2] for found in within if 0.99 * most <= found[place] <= most and found[2] <= 1.05 * best]
        best = min(nearer, default=best)
    choice = choose_ranks(toy, images, **budget, **QUICK)
    assert choice.error == pytest.approx(best, rel=1e-3)
    for name, rank in choice.ranks.items():
        assert choice.errors[name] == pytest.approx(errors[name][rank], rel=1e-3, abs=1e-6)
    ranks = tuple(choice.ranks.values())
    assert choice.share * combinations[None, None, None][place] == combinations[ranks][place] <= most
    uniform = [rank for rank in range(1, 10) if combinations[min(rank, 6), rank, min(rank, 3)][place] <= most]
    assert (choice.uniform.rank if choice.uniform else None) == max(uniform, default=None)
    assert not uniform or choice.error <= choice.uniform.error


def test_errors_of_the_objective_weights(toy, images):
    choice = choose_ranks(toy, images, macs=0.7, objective="weights", **QUICK)
    for name, rank in choice.ranks.items():
        if rank is not None:
            assert choice.errors[name] == pytest.approx(fitted_error(toy, name, rank, images, **QUICK), rel=1e-3)


def test_the_uniform_error_is_its_own(toy, images, every):
    errors, combinations = every
    choice = choose_ranks(toy, images, macs=0.6, **QUICK)
    own = {name: min(choice.uniform.rank, max(r for r in errors[name] if r)) for name in errors}
    dense = norton.complexity(toy).by_layer
    shaped = norton.complexity(norton.decompose(toy, own, starts=1, iterations=1)).by_layer
    kept = [name for name in own if shaped[name].macs < dense[name].macs]  # else dense is better, and cheaper
    assert choice.uniform.error == pytest.approx(sum(errors[name][own[name]] for name in kept), rel=1e-3)
    assert choice.uniform.share == combinations[tuple(own.values())][0] / norton.complexity(toy).macs


@pytest.mark.parametrize("what, shares", [("macs", (0.3, 0.5)), ("params", (0.35,))])
def test_many_layers_meet_the_budget_to_a_percent(narrow, what, shares):
    errors = []
    for share in shares:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "a budget without calibration images")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            choice = choose_ranks(narrow, **{what: share}, objective="weights", starts=1, iterations=2)
        small = norton.decompose(narrow, choice.ranks, starts=1, iterations=1)
        kept = getattr(norton.complexity(small), what) / getattr(norton.complexity(narrow), what)
        assert choice.share == kept and 0.99 * share <= kept <= share
        assert choice.uniform is None or choice.error <= choice.uniform.error
        assert sum(after for _, after in choice.costs.values()) < sum(before for before, _ in choice.costs.values())
        errors.append(choice.error)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.filterwarnings("ignore:a budget without", "ignore:.*too coarse")
@pytest.mark.parametrize("method, what, share", [
    ("tucker", "macs", 0.5),
    ("tt_filter", "macs", 0.6),
    ("cp_layer", "params", 0.4),
    ("svd", "params", 0.9),
])  # fmt: skip
def test_other_methods_count_exactly(toy, narrow, method, what, share):
    net = narrow if method == "svd" else toy
    options = {"iterations": 3} if method in ("tucker", "cp_layer") else {}
    choice = choose_ranks(net, **{what: share}, method=method, **options)
    small = norton.decompose(net, choice.ranks, method=method, **options)
    before, after = (getattr(norton.complexity(one), what) for one in (net, small))
    assert after == choice.share * before <= share * before
    assert choice.uniform is None or choice.error <= choice.uniform.error


def test_a_sample_of_filters_is_of_the_layer(toy, images):
    """Eight of a layer's filters: another error than that of all, but near it; and the same each time."""
    whole = choose_ranks(toy, images, macs=0.6, **QUICK)
    some = [choose_ranks(toy, images, macs=0.6, filters=8, **QUICK) for _ in range(2)]
    assert some[0] == some[1]
    same = [name for name, rank in whole.ranks.items() if rank and some[0].ranks[name] == rank]
    assert same
    for name in same:
        assert some[0].errors[name] != whole.errors[name]
        assert some[0].errors[name] == pytest.approx(whole.errors[name], rel=0.5)


def test_a_shared_layer_has_one_rank(images):
    net = randomise_(Toy())
    net.conv2 = nn.Conv2d(12, 12, 3, padding=1)
    net.norm2 = nn.BatchNorm2d(12)
    net.conv3 = net.conv2
    net.fc = nn.Linear(12, 5)
    choice = choose_ranks(net.eval(), images, macs=0.5, **QUICK)
    assert choice.ranks["conv2"] == choice.ranks["conv3"] is not None
    small = norton.decompose(net, choice.ranks, **QUICK)
    assert norton.complexity(small).macs == choice.share * norton.complexity(net).macs


# Joint with pruning


def widths(net):
    return {name: layer.weight.shape for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


@pytest.mark.filterwarnings("ignore:a budget without")
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_joint_is_exact_and_no_worse(narrow, share):
    pruning = {"criterion": "l2", "min_filters": 2}
    quick = {"starts": 1, "iterations": 3, "objective": "weights"}
    joint = choose_ranks(narrow, macs=share, joint=True, pruning=pruning, **quick)
    small = norton.decompose(narrow, joint.ranks, starts=1, iterations=1)
    small = norton.prune(small, joint.rates, **pruning)
    kept = norton.complexity(small).macs / norton.complexity(narrow).macs
    assert kept == joint.share and 0.99 * share <= kept <= share
    if share == 0.15:  # below what ranks alone can do
        assert any(joint.rates.values()) and joint.uniform is None
        with pytest.raises(
            InputError, match=r"macs=0\.15 is below the least possible: VGG16BN keeps 0\.\d+ at rank 1;"
        ):
            choose_ranks(narrow, macs=share, **quick)
        return
    alone = choose_ranks(narrow, macs=share, **quick)
    assert joint.error <= alone.error <= joint.uniform.error
    for name, (before, after) in joint.costs.items():
        assert before == norton.complexity(narrow).by_layer[name].macs
        assert after == norton.complexity(small).by_layer[name].macs


@pytest.mark.filterwarnings("ignore:a budget without")
@pytest.mark.parametrize("part", [0.2, 0.4])
def test_joint_is_no_worse_than_pruning_alone(narrow, part):
    """Budgets that are what a step of pruning leaves, on its way."""
    pruning = {"criterion": "l2", "min_filters": 2}
    curves = pruning_curves_of(narrow, pruning)
    for name in curves.readers():
        curves.probe(name, None, 0)(narrow.get_submodule(name).weight.detach(), None)
    whole = norton.complexity(narrow)
    path = curves.path({name: cost.macs for name, cost in whole.by_layer.items()})
    level = path[round(part * len(path))][0]
    share = norton.complexity(curves.pruned(level)).macs / whole.macs
    joint = choose_ranks(narrow, macs=share, joint=True, pruning=pruning, starts=1, iterations=3, objective="weights")
    assert joint.error <= curves.error(level) * (1 + 1e-9)


def test_images_tell_the_size_where_the_network_does_not():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    choice = choose_ranks(net, torch.randn(16, 3, 10, 10), macs=0.6, **QUICK)
    small = norton.decompose(net, choice.ranks, **QUICK)
    kept, whole = (norton.complexity(one, (3, 10, 10)).macs for one in (small, net))
    assert choice.share == kept / whole <= 0.6


@pytest.mark.parametrize("filters", [0, -1, 1.5, True])
def test_filters_looked_at(toy, images, filters):
    with pytest.raises(InputError, match=r"filters is .*; it must be a whole number of at least 1, or None"):
        choose_ranks(toy, images, macs=0.5, filters=filters)


def test_what_readers_lose(toy, images):
    """Pruning is measured at the layers that read what goes, by zeros in their inputs."""
    joint = choose_ranks(toy, images, macs=0.25, joint=True, pruning={"criterion": "l2", "min_filters": 1}, **QUICK)
    assert any(joint.rates.values())
    rates = {name: rate for name, rate in joint.rates.items() if rate}
    keep = plan_of(norton.prune(toy, rates, criterion="l2", min_filters=1))[-1]["keep"]
    for writer, reader in (("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "fc")):
        weight = toy.get_submodule(reader).weight.detach()
        gone = weight.clone()
        gone[:, keep.get(writer, slice(None))] = 0
        own = joint.ranks.get(reader)
        error = fitted_error(toy, reader, own, images, **AS_MEASURED) if own else 0.0
        assert joint.errors[reader] == pytest.approx(
            error + literal_error(toy, reader, gone, images), rel=2e-3, abs=1e-6
        )


def test_compensation_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    rows, x = torch.randn(4, 9, generator=generator).double(), torch.randn(200, 9, generator=generator).double()
    x = x @ torch.randn(9, 9, generator=generator).double()
    lost = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0]).bool()
    metric = Metric([x.T @ x / len(x)])
    best = torch.linalg.lstsq(x[:, ~lost], x @ rows.T).solution.T
    literal = (x @ rows.T - x[:, ~lost] @ best.T).square().mean(0)
    assert torch.allclose(metric.squares(lost_rows(rows, lost, metric, refit=True)), literal)
    assert torch.allclose(
        metric.squares(lost_rows(rows, lost, metric, refit=False)), (x[:, lost] @ rows[:, lost].T).square().mean(0)
    )


def test_pruning_curves_cut_what_prune_does():
    """Where shortcuts bind streams too: any mixture of rates has the shapes and filters of `norton.prune`."""
    net = randomise_(norton.build("resnet_56"))
    curves = pruning_curves_of(net, {"criterion": "l1", "min_filters": 4})
    rng = np.random.default_rng(0)
    for level in (curves.most_pruned, tuple(map(int, rng.integers(0, 9, len(curves.groups))))):
        small = norton.prune(net, curves.rates(level), criterion="l1", min_filters=4)
        own = curves.pruned(level)
        assert all(
            torch.equal(a, b) for a, b in zip(own.state_dict().values(), small.state_dict().values(), strict=True)
        )
    costs = {name: cost.macs for name, cost in norton.complexity(net).by_layer.items()}
    curves.errors = {"fc": rng.random((len(curves.groups), 9)).cumsum(1)}
    path = curves.path(costs)
    left = [share for _, share in path]
    assert (
        path[0] == (curves.unpruned, 1.0) and path[-1][0] == curves.most_pruned and left == sorted(left, reverse=True)
    )
    for place in (len(path) // 3, len(path) - 1):  # the model is near the truth
        level, share = path[place]
        assert norton.complexity(curves.pruned(level)).macs / norton.complexity(net).macs == pytest.approx(
            share, abs=0.03
        )


# Bad input


@pytest.mark.parametrize("settings, message", [
    ({}, "neither macs nor params is given"),
    ({"macs": 0.4, "params": 0.4}, "both macs and params are given"),
    ({"macs": 1.0}, "macs is 1.0; it is the share to keep, above 0 and below 1"),
    ({"params": 0}, "params is 0;"),
    ({"macs": float("nan")}, "macs is nan"),
    ({"macs": "half"}, "macs is 'half'"),
    ({"macs": True}, "macs is True"),
    ({"macs": 0.01}, r"macs=0.01 is below the least possible: Toy keeps 0\.\d+ at rank 1; ask for more"),
    ({"macs": 0.01, "joint": True}, r"keeps 0\.\d+ at rank 1 and rates of 0.8"),
    ({"macs": 0.4, "objective": "dreams"}, "objective is 'dreams'"),
    ({"macs": 0.4, "method": "cpp"}, "unknown decomposition 'cpp'"),
    ({"macs": 0.4, "skip": ["conv9"]}, "'conv9' matches no convolution"),
    ({"macs": 0.4, "speed": 3}, "has no option speed"),
    ({"macs": 0.4, "joint": True, "pruning": {"criterion": "index"}}, "which 'index' is not"),
    ({"macs": 0.4, "joint": True, "pruning": {"allocation": "global"}}, "allocation=global takes one number"),
    ({"macs": 0.4, "images": torch.zeros(4, 3, 8, 8)}, "3×8×8; the network takes 3×11×11"),
])  # fmt: skip
def test_bad_input(toy, settings, message):
    with pytest.raises(InputError, match=message):
        choose_ranks(toy, **settings)


def test_a_single_layer_has_no_budget():
    with pytest.raises(InputError, match="this one is a single one"):
        choose_ranks(nn.Conv2d(3, 4, 3), macs=0.5)


def test_steps_too_coarse_are_said(toy):
    with pytest.warns(UserWarning, match="too coarse here"):
        choice = choose_ranks(toy, macs=0.98, skip=["conv1", "conv2"], objective="weights", **QUICK)
    assert choice.share < 0.95 and choice.ranks == {"conv3": 1}


# The shell

NARROW = (
    "model=vgg_16_bn model.compress_rate=[0.95]*13 data=mnist5k calibration.images=16 calibration.batchnorm=false "
    "decomposition.options.starts=1 decomposition.options.iterations=2"
)


def test_decompose(tmp_path, monkeypatch, capsys):
    command = f"python decompose.py {NARROW} budget.macs=0.4 decomposition.objective=outputs out={tmp_path}/out"
    code, out, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    net, content = norton.load(tmp_path / "out" / "model.pt"), read(tmp_path / "out" / "model.pt")
    dense = norton.complexity(norton.build("vgg_16_bn", 0, [0.95] * 13)).macs
    assert 0.396 <= norton.complexity(net).macs / dense <= 0.4
    choice = Choice.from_dict(json.loads((tmp_path / "out" / "metrics.json").read_text())["choice"])
    assert choice.share == norton.complexity(net).macs / dense
    assert {name: rank for name, rank in choice.ranks.items() if rank} == plan_of(net)[-1]["ranks"]
    assert content["lineage"][-1]["rank"] == choice.ranks
    assert content["lineage"][-1]["budget"] == {"macs": 0.4, "params": None, "joint": False}
    assert content["metrics"]["budget"] == choice.summary()
    assert "40% of MACs" in out and "features.conv16" in out and choice.sentence() in " ".join(out.split())
    assert "rank: null" in (tmp_path / "out" / "config.yaml").read_text()


def test_joint_pipeline_goes_on(tmp_path, monkeypatch, capsys):
    command = (
        f"python -m experiments.pipeline {NARROW} budget.macs=0.3 budget.joint=true pruning=l2 pruning.min_filters=2 "
        "steps=[decompose,prune] data.batch_size=16 latency_batch=2 +trainer.limit_test_batches=1 "
        f"out={tmp_path}/out"
    )
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    choice = Choice.from_dict(json.loads((tmp_path / "out" / "budget.json").read_text()))
    dense = norton.complexity(norton.build("vgg_16_bn", 0, [0.95] * 13)).macs
    final = norton.complexity(norton.load(tmp_path / "out" / "2_prune.pt")).macs
    assert final / dense == choice.share and 0.297 <= choice.share <= 0.3
    assert read(tmp_path / "out" / "2_prune.pt")["lineage"][-1]["compress_rate"] == choice.rates
    (tmp_path / "out" / "2_prune.pt").unlink()
    monkeypatch.setattr(norton, "choose_ranks", None)  # it is not asked again
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    assert norton.complexity(norton.load(tmp_path / "out" / "2_prune.pt")).macs == final


def test_sweep(tmp_path, monkeypatch, capsys):
    command = (
        f"python -m experiments.ablation {NARROW} budget.macs=0.4 steps=[decompose] data.batch_size=16 "
        f"latency_batch=null +trainer.limit_test_batches=1 decomposition.objective=weights out={tmp_path}/out"
    )
    code, out, err = run_here(command, monkeypatch, capsys)
    assert code == 0, out + err
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "points").glob("*.json")]
    found = {record["label"]: record["result"] for record in records}
    assert found.keys() == {"40% of MACs, seed 0"}
    for label, result in found.items():
        assert 0 <= float(label[:2]) - (100 - result["macs_removed_percent"]) <= 0.01 * float(label[:2])
        assert result["budget"]["ranks"]


@pytest.mark.parametrize("program, settings, message", [
    ("decompose.py", "budget.macs=0.4 rank=2", "both rank and budget.macs are given"),
    ("decompose.py", "budget.macs=0.4 budget.params=0.4", "both macs and params are given"),
    ("decompose.py", "budget.macs=1.5", "macs is 1.5"),
    ("decompose.py", "budget.macs=0.01", "is below the least possible"),
    ("decompose.py", "budget.macs=0.4 budget.joint=true", "budget.joint needs a step that prunes"),
    ("decompose.py", "budget.joint=true", "budget.joint without a budget"),
    ("decompose.py", "budget.macs=0.4 budget.joint=perhaps", "budget.joint is 'perhaps'"),
    ("-m experiments.pipeline", "budget.macs=0.4 steps=[prune,finetune] compress_rate=0.1", "a budget needs decompose"),
    ("-m experiments.pipeline", "budget.macs=0.4 steps=[prune,decompose] compress_rate=0.1", "before it is pruned"),
    ("-m experiments.pipeline", "budget.macs=0.4 budget.joint=true compress_rate=0.1", "both compress_rate and"),
    ("-m experiments.pipeline", "budget.macs=0.01 steps=[train,decompose]", "is below the least possible"),
    ("-m experiments.ablation", "budget.macs=0.4 rank=1,2 steps=[decompose]", "both rank and budget.macs are given"),
])  # fmt: skip
def test_bad_input_of_the_shell(program, settings, message, tmp_path, monkeypatch, capsys):
    command = f"python {program} {NARROW} {settings} out={tmp_path}/out"
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "config.yaml").exists()
