"""The paper's tables: every published row is there, with exact counts, a config where it is known, and accuracies of
runs that really are of that network."""

import csv
import json

import pytest
from helpers.commands import run_here
from hydra import compose, initialize_config_dir

import norton
from experiments.paper_tables import TABLES, experiment_of, find_runs, read, side_by_side
from norton.cli.program import CONFIGS

NORTON_ROWS = read("norton_rows.csv")
KNOWN = [row for row in NORTON_ROWS if row["origin"] != "unknown"]
ABLATIONS = [
    *((f"ablation_rank_{row['rank']}", row["rank"], None) for row in read("rank_ablation.csv")),
    *((f"ablation_{row['name']}", row["rank"], row["compress_rate"]) for row in read("rank_ratio_ablation.csv")),
]


def composed(experiment):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("pipeline", [f"experiment={experiment}"])


@pytest.mark.parametrize("row", KNOWN, ids=experiment_of)
def test_a_config_for_each_known_row(row):
    cfg = composed(experiment_of(row))
    assert cfg.data.name == row["dataset"]
    if row["origin"] == "baseline":
        assert (cfg.model.arch, list(cfg.steps)) == (row["arch"], ["train"])
    else:
        assert (cfg.rank, cfg.compress_rate) == (int(row["rank"]), row["compress_rate"])
        assert cfg.checkpoint == f"outputs/paper/{row['arch']}_baseline/1_train.pt"
        assert list(cfg.steps) == ["decompose", "prune", "finetune"]
    recipe = cfg.pretraining if row["origin"] == "baseline" else cfg.training
    published = {"cifar10": (400, 0.05, 0.9, 5e-4, 0.0, 5), "imagenet": (200, 0.01, 0.99, 1e-4, 0.1, 0)}
    assert published[row["dataset"]] == (
        recipe.epochs,
        recipe.learning_rate,
        recipe.momentum,
        recipe.weight_decay,
        recipe.label_smoothing,
        recipe.warmup_epochs,
    )
    assert recipe.select_on == "validation"


@pytest.mark.parametrize("name, rank, rates", ABLATIONS)
def test_a_config_for_each_point_of_the_ablations(name, rank, rates):
    cfg = composed(name)
    assert (cfg.rank, cfg.compress_rate, cfg.data.name) == (int(rank), rates, "cifar10")


def test_no_config_for_a_row_nobody_knows():
    configs = {path.stem for path in (CONFIGS / "experiment").glob("*.yaml")}
    families = ("scenes", "sweep_", "published_")
    ours = {"demo", "train_dense", "cifar10_dense", "vgg_digits"}
    ours |= {name for name in configs if name.startswith(families)}
    assert configs - ours == {experiment_of(row) for row in KNOWN} | {name for name, *_ in ABLATIONS}


@pytest.mark.parametrize("arch", [name for name in TABLES if name not in ("rank_ablation", "rank_ratio", "detection")])
def test_classification(arch):
    published = [row for row in read("classification.csv") if row["arch"] == arch]
    rows = TABLES[arch](arch, [])
    assert [row["method"] for row in rows] == [row["method"] for row in published]
    exact = {row["published_macs"]: row for row in NORTON_ROWS if row["arch"] == arch}
    for row, source in zip(rows, published, strict=True):
        assert row["top-1 %"] == float(source["top1_percent"])
        assert row["top-1 % here"] is None
        if row["experiment"] in (None, "unknown"):
            assert row["MACs here"] is None
        else:
            assert row["MACs here"] == f"{int(exact[source['macs']]['exact_macs']):,}"
            assert row["params here"] == f"{int(exact[source['macs']]['exact_params_without_block_bias']):,}"
            # The printed percentages are rounded, and taken against a dense count that is itself printed roughly.
            assert row["MACs −% here"] == pytest.approx(row["MACs −%"], abs=1.0)
    unknown = [row for row in rows if row["experiment"] == "unknown"]
    assert len(unknown) == sum(row["origin"] == "unknown" for row in exact.values())


def run_of(arch, rank, rates, data, **values):
    cost = norton.complexity(norton.build(arch, rank, rates))
    return {"arch": arch, "data": data, "macs": cost.macs, "params": cost.params, **values}


def test_accuracies_of_runs(tmp_path):
    rates = "[0.6]*6+[0.8]*7"
    pipeline = {
        "decomposed": run_of("vgg_16_bn", 1, None, "cifar10", top1=10.0),
        "pruned": run_of("vgg_16_bn", 1, rates, "cifar10", top1=11.0),
        "fine-tuned": run_of("vgg_16_bn", 1, rates, "cifar10", top1=90.5, top5=99.5),
    }
    evaluated = [
        run_of("vgg_16_bn", 8, "[0.3]*7+[0.75]*5", "clutter", top1=50.0),  # other data
        run_of("vgg_16_bn", 8, "[0.3]*7+[0.75]*5", "cifar10", top1=51.0, split="val"),  # other split
        run_of("vgg_16_bn", 8, "[0.2]*7+[0.75]*5", "cifar10", top1=52.0),  # other network
        run_of("vgg_16_bn", 2, None, "cifar10", top1=94.2, claims={"file": {"macs": 1, "params": 1}}),
        run_of("vgg_16_bn", 2, None, "cifar10", top1=10.1, last_step="decompose"),  # not fine-tuned
        run_of("vgg_16_bn", 2, None, "cifar10", top1=10.2, last_step="prune"),
        run_of("vgg_16_bn", 1, None, "cifar10", top1="93.8"),
        run_of("vgg_16_bn", 1, None, "cifar10", top1=float("nan")),
    ]
    nmse = {
        "arch": "vgg_16_bn",
        "data": "cifar10",
        "ranks": [{k: v for k, v in run_of("vgg_16_bn", 3, None, "", nmse=0.28, top1=68.0).items() if k != "data"}],
    }
    for name, content in (("a", pipeline), ("b", evaluated), ("c", nmse), ("d", ["text", 3])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
    (tmp_path / "metrics.json").write_text("not JSON")
    runs = find_runs(tmp_path)
    found = {row["experiment"]: row["top-1 % here"] for row in TABLES["vgg_16_bn"]("vgg_16_bn", runs)}
    accuracies = {name: value for name, value in found.items() if value is not None}
    assert accuracies == {"vgg_16_bn_4.58M": 90.5, "vgg_16_bn_74.14M": 94.2}
    ranks = {row["rank"]: row for row in TABLES["rank_ablation"]("rank_ablation", runs)}
    assert ranks[1]["before fine-tuning % here"] == 10.0
    assert ranks[1]["top-1 % here"] is None
    assert (ranks[2]["top-1 % here"], ranks[2]["before fine-tuning % here"]) == (94.2, 10.1)
    assert (ranks[3]["NMSE here"], ranks[3]["before fine-tuning % here"]) == ("0.2800", 68.0)
    assert ranks[3]["top-1 % here"] is None


def test_the_table_for_people():
    rows = [
        {"method": "X", "top-1 %": 90.0, "top-1 % here": None, "top-5 %": None, "experiment": None},
        {"method": "N", "top-1 %": 91.0, "top-1 % here": 90.5, "top-5 %": None, "experiment": "e"},
    ]
    assert side_by_side(rows) == [
        {"method": "X", "top-1 %": "90.00", "experiment": None},
        {"method": "N", "top-1 %": "91.00 / 90.50", "experiment": "e"},
    ]


def test_the_program(tmp_path, monkeypatch, capsys):
    command = f"python -m experiments.paper_tables table=rank_ratio out={tmp_path}/out"
    code, said, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert "3N" in said
    written = {"config.yaml", "metrics.json", "rank_ratio.md", "rank_ratio.csv", "rank_ratio.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    (first, *_) = csv.DictReader((tmp_path / "out" / "rank_ratio.csv").open())
    assert (first["method"], first["MACs here"], first["params −%"]) == ("3N", "110,597,130", "64.91")


def test_an_unknown_table(tmp_path, monkeypatch, capsys):
    command = f"python -m experiments.paper_tables table=nix out={tmp_path}/out"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2
    assert "unknown table 'nix'; choose one of all, vgg_16_bn" in error
    assert not (tmp_path / "out").exists()
