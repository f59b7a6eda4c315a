"""The report of a sweep: its numbers by hand, its files, and that a browser shows it without an error."""

import csv
import json
import re
import shutil
import subprocess

import pytest
from helpers.commands import run_here, written

from experiments.sweeps.folder import FORMAT
from experiments.sweeps.report import charts

DENSE = {"top1": 95.0, "top5": 100.0, "loss": 0.1, "macs": 1000, "params": 100}


def record(point, rank, rates, criterion, seed, top1, macs, latency=2.0):
    cfg = {"steps": ["decompose", "prune", "finetune"], "rank": rank, "compress_rate": rates, "seed": seed}
    cfg |= {"pruning": {"criterion": criterion}, "training": {"epochs": 2}}
    found = {"arch": "resnet_56", "data": "clutter", "dense": DENSE, "top1": top1, "top1_before": top1 - 20}
    found |= {"nmse": 0.1 / rank, "macs": macs, "params": macs // 10, "latency_ms": latency, "dense_latency_ms": 4.0}
    found |= {"macs_removed_percent": 100 - macs / 10, "params_removed_percent": 100 - macs / 10}
    said = {key: cfg[key] for key in ("rank", "compress_rate", "seed", "pruning")} | {"decomposition": {"seed": seed}}
    about = {
        "meaning": said,
        "format": FORMAT,
        "point": point,
        "status": "done",
        "label": f"rank {rank} {rates} seed {seed}",
    }
    return {**about, "result": found, "config": cfg, "seconds": 1.0, "machine": "CPU, 1 thread"}


@pytest.fixture
def folder(tmp_path):
    """A half-finished sweep: two ranks, two rates, two criteria, two seeds; one point failed, one is damaged."""
    made, index = [], {}
    for rank in (1, 2):
        for rates, kept in (("[0.]*30", 1.0), ("[0.5]*30", 0.5)):
            for criterion in ("pabs", "l2"):
                for seed in (0, 1):
                    top1 = 80 + 5 * rank + 4 * kept + 2 * seed - (criterion == "l2")
                    made.append(record(f"p{len(made)}", rank, rates, criterion, seed, top1, int(350 * rank * kept)))
    for number, one in enumerate(made):
        cfg = one["config"]
        swept = {"rank": str(cfg["rank"]), "compress_rate": cfg["compress_rate"], "seed": str(cfg["seed"])}
        index[one["point"]] = {"label": one["label"], "swept": swept, "command": f"python -m point {number}"}
        if number == 14:
            one = {**one, "status": "failed", "error": "<b>no luck</b>"}
        text = json.dumps(one)
        path = tmp_path / "points" / f"{one['point']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text[:100] if number == 15 else text)
    index["later"] = {"label": "later", "swept": {}, "command": ""}
    whole = {"format": FORMAT, "name": "half", "commands": ["python -m experiments.ablation rank=1,2"], "points": index}
    (tmp_path / "sweep.json").write_text(json.dumps(whole))
    return tmp_path


@pytest.fixture
def reported(folder, monkeypatch, capsys):
    code, out, err = run_here(f"python -m experiments.report sweep={folder}", monkeypatch, capsys)
    assert code == 0, err
    return folder, out


def test_files(reported):
    folder, out = reported
    assert {"report.html", "points.csv", "table.md", "pareto.png", "heatmap.png", "budgets.png"} <= written(folder)
    assert "14 of 17 points done, 1 failed, 2 missing" in out
    assert "p15.json is no whole result" in out and "failed: rank 2 [0.5]*30 seed 0: <b>no luck</b>" in out


def test_numbers(reported):
    folder, _ = reported
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0].startswith("| rank | rates | criterion | top-1 % | before fine-tuning |")
    assert lines[2].startswith("| 1 | [0.]*30 | pabs | 90.00 ± 1.41 | 70.00 | 0.1000 |")  # of 89 and 91
    assert lines[2].endswith("| 65.00 | 65.00 | 2.00 | 2 |")
    assert len(lines) == 2 + 7  # the eighth configuration failed and is damaged
    points = list(csv.DictReader((folder / "points.csv").open()))
    assert len(points) == 14 and points[0]["top1"] == "89.0" and points[0]["command"] == "python -m point 0"


def test_page_is_self_contained_and_escapes(reported):
    page = (reported[0] / "report.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?(https?:)?//", page)
    assert "<b>no luck</b>" not in page and "&lt;b&gt;no luck" in page
    assert page.count("<details>") == 14 and "python -m point 13" in page
    assert len(page) < 2_500_000  # plotly alone is 4.8 MB


def test_the_page_has_one_legend(reported):
    page = (reported[0] / "report.html").read_text()
    assert re.findall('data-word="(.*?)"', page) == ["rank 1", "rank 2", "pabs", "l2", "dense"]
    assert '"showlegend": true' not in page


@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="needs Chromium")
def test_page_in_a_browser(reported):
    folder, _ = reported
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
    ]
    for width in (1400, 500):
        shown = subprocess.run(
            [browser, *options, f"--window-size={width},900", "--dump-dom", f"file://{folder}/report.html"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "CONSOLE" not in shown.stderr, shown.stderr
        assert shown.stdout.count('class="main-svg"') >= 2 * 6  # three fronts, two maps, a budget


def test_front():
    points = [(3, 90), (1, 70), (2, 95), (2, 60), (4, 95), (5, 96)]
    assert charts.front(points) == [(1, 70), (2, 95), (5, 96)]


def test_front_by_its_definition():
    points = [((7 * i) % 13, (5 * i) % 11) for i in range(40)]
    best = [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)]
    assert charts.front(points) == sorted(set(best))


def test_points_that_the_dense_network_beats_are_not_on_the_front():
    row = {"dense": DENSE, "arch": "resnet_56", "data": "clutter"}
    costs = {"params": 50, "latency_percent": None, "said": {}}
    means = [
        {"macs": 500, "score": 90.0} | costs,
        {"macs": 1200, "score": 94.0} | costs,
        {"macs": 999, "score": 89} | costs,
    ]
    macs, params = charts.panels(means, [row])
    assert macs.front == [(0.0005, 90.0), (0.001, 95.0)]
    assert params.front == [(0.00005, 94.0), (0.0001, 95.0)]
    slow = [mean | {"latency_percent": percent} for mean, percent in zip(means, (150, 110, 90), strict=True)]
    assert charts.panels(slow, [row])[2].front == [(90, 89), (100, 95.0)]


def mean(score, removed, **said):
    return {"score": score, "macs_removed_percent": removed, "said": said}


def test_budgets():
    means = [mean(90, 64.2), mean(91, 65.9), mean(92, 66.1), mean(93, 40.0)]
    assert {budget: [m["score"] for m in found] for budget, found in charts.budget_slices(means, None, 1).items()} == {
        65: [91, 90]
    }
    assert [m["score"] for m in charts.budget_slices(means, [65], 1.5)[65]] == [92, 91, 90]
    assert charts.budget_slices(means, [40], 1) == {40: [means[3]]}


def test_a_map_leaves_missing_points_open():
    cells = [(1, "[0.]*3"), (2, "[0.]*3"), (1, "[0.]+[0.5]*2")]
    means = [mean(80 + number, 0, rank=rank, rates=rates) for number, (rank, rates) in enumerate(cells)]
    expected = ([1, 2], ["[0.]*3", "[0.]+[0.5]*2"], [[80, 81], [82, None]])
    assert charts.heat_maps(means[::-1]) == {None: expected}


def test_what_is_not_pruned_is_part_of_every_map():
    points = [(rank, "[0.]*3", "pabs") for rank in (1, 2)]
    points += [(rank, "[0.5]*3", criterion) for criterion in ("pabs", "l2") for rank in (1, 2)]
    means = [
        mean(80 + number, 0, rank=rank, rates=rates, criterion=criterion)
        for number, (rank, rates, criterion) in enumerate(points)
    ]
    maps = charts.heat_maps(means)
    assert maps["pabs"].scores == [[80, 81], [82, 83]] and maps["l2"].scores == [[80, 81], [84, 85]]


def test_the_paper_is_the_background_on_its_own_data_alone():
    dense = {"params": 853018}
    on = [{"arch": "resnet_56", "data": "cifar10", "dense": dense}]
    found = {method: rest for method, *rest in charts.published(on)}
    assert found["HRank-1"][0] == 93.52
    assert charts.published([on[0] | {"data": "clutter"}]) == []
    assert charts.published([on[0] | {"dense": {"params": 1}}]) == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ("", "no sweep: give sweep=DIR"),
        ("sweep=nowhere", "nowhere holds no sweep"),
        ("sweep=FOLDER budgets=[lots]", "it must be a list of percentages"),
        ("sweep=FOLDER tolerance=-1", "tolerance is -1"),
    ],
)
def test_bad_input(settings, message, folder, monkeypatch, capsys):
    settings = settings.replace("FOLDER", str(folder))
    code, _, err = run_here(f"python -m experiments.report {settings}", monkeypatch, capsys)
    assert code == 2 and message in err


def test_a_sweep_without_results(folder, monkeypatch, capsys):
    shutil.rmtree(folder / "points")
    code, _, err = run_here(f"python -m experiments.report sweep={folder}", monkeypatch, capsys)
    assert code == 2 and "has a result yet" in err


def test_a_damaged_index(folder, monkeypatch, capsys):
    (folder / "sweep.json").write_text("{")
    code, _, err = run_here(f"python -m experiments.report sweep={folder}", monkeypatch, capsys)
    assert code == 2 and "is damaged" in err


def test_points_of_several_kinds_share_columns(folder, monkeypatch, capsys):
    """Some fine-tuned, some without latency, some not pruned: no value may stand under another's name."""
    for number, path in enumerate(sorted((folder / "points").glob("p[0-9].json"))):
        one = json.loads(path.read_text())
        if number == 0:
            one["config"]["training"]["epochs"] = 0
        if number in (0, 1):  # both seeds of the first configuration
            del one["result"]["latency_ms"], one["result"]["dense_latency_ms"]
        if number in (2, 3):
            one["config"]["steps"] = ["decompose"]
        path.write_text(json.dumps(one))
    code, _, err = run_here(f"python -m experiments.report sweep={folder}", monkeypatch, capsys)
    assert code == 0, err
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in (folder / "table.md").read_text().splitlines()
    ]
    assert all(len(line) == len(header) for line in lines)
    first, second = (dict(zip(header, line, strict=True)) for line in lines[:2])
    assert first["times as fast"] == "-" and first["NMSE"] == "0.1000"
    assert second["rates"] == "-" and second["times as fast"] == "2.00"
    assert {row["point"] for row in csv.DictReader((folder / "points.csv").open())} >= {"p0", "p2"}


def test_other_settings_are_no_seeds(folder, monkeypatch, capsys):
    """A sweep that was extended with another calibration: not the mean of both."""
    path = folder / "points" / "p1.json"
    one = json.loads(path.read_text())
    one["meaning"]["calibration"] = {"images": 64}
    path.write_text(json.dumps(one))
    code, _, err = run_here(f"python -m experiments.report sweep={folder}", monkeypatch, capsys)
    assert code == 0, err
    header, _, first, second, *_ = (folder / "table.md").read_text().splitlines()
    assert "calibration.images" in header
    assert "| 89.00 |" in first and "| 91.00 |" in second and "| 64 |" in second


def test_failures_of_one_label_are_all_told(folder, monkeypatch, capsys):
    for point in ("p0", "p1"):
        path = folder / "points" / f"{point}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed", "error": f"error of {point}"}))
    index = json.loads((folder / "sweep.json").read_text())
    index["points"]["p1"]["label"] = index["points"]["p0"]["label"]
    (folder / "sweep.json").write_text(json.dumps(index))
    _, out, _ = run_here(f"python -m experiments.report sweep={folder}", monkeypatch, capsys)
    assert "12 of 17 points done, 3 failed, 2 missing" in out and "error of p0" in out and "error of p1" in out
