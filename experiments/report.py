"""What a sweep found, also a half-finished one: a page that opens without a network, pictures, and tables."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2
import plotly.graph_objects as go
from omegaconf import DictConfig, OmegaConf
from plotly.offline import get_plotlyjs

import norton
from experiments import paper_tables
from experiments.sweeps.points import IN_LABEL, Sweep, identity, read_index, read_result
from norton.cli import program, report, steps
from norton.common.errors import InputError
from norton.common.files import write_whole
from norton.pruning import describe
from norton.pruning.rates import parse_rates

Row = dict[str, Any]
TEMPLATE = Path(__file__).parent / "templates" / "report.html"
MEASURED = ("top1", "top1_before", "nmse", "macs", "params", "latency_ms", "macs_removed_percent")
MEASURED += ("params_removed_percent", "latency_percent", "speedup")
COSTS = {
    "macs": ("MACs (millions)", 1e6),
    "params": ("parameters (millions)", 1e6),
    "latency_percent": ("latency (% of the dense network's)", 1),
}
PUBLISHED = {"macs": 2, "params": 3}  # where `published` has them
SEEDS = ("seed", "decomposition.seed", "pruning.seed")
SYMBOLS = ["circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon"]
MARKERS = ["o", "s", "D", "P", "X", "^", "*", "h"]


@program.script("report")
def run(cfg: DictConfig) -> None:
    check(cfg)
    sweep = Sweep(Path(str(cfg.sweep)))
    index = read_index(sweep)
    rows, failures, damaged = collect(sweep, index)
    folder = Path(str(cfg.out or sweep.folder))
    if not rows:
        raise norton.InputError(f"no point of {sweep.folder} has a result yet; {len(failures)} failed")
    missing = len(index["points"]) - len(rows) - len(failures)
    arch, data = (", ".join(dict.fromkeys(row[key] for row in rows)) for key in ("arch", "data"))
    title = ", ".join([f"{index['name']}: {arch} on {data}", *constants_(rows)])
    means = over_seeds(rows)
    slices = budget_slices(means, steps.plain(cfg.budgets), cfg.tolerance)
    state = f"{len(rows)} of {len(index['points'])} points done"
    state += f", {len(failures)} failed" * bool(failures) + f", {missing} missing" * bool(missing)

    files = ["report.html", "points.csv", "table.md", "pareto.png"]
    write_whole(folder / "points.csv", paper_tables.as_csv(uniform([flat(row) for row in rows])))
    table = uniform([cells(mean) for mean in means])
    report.write_table(folder / "table.md", table)
    pareto_picture(folder / "pareto.png", means, rows, f"{title}, {state}")
    if maps := heat_maps(means):
        heat_picture(folder / "heatmap.png", maps, title)
        files.append("heatmap.png")
    if slices:
        budget_picture(folder / "budgets.png", slices, cfg.tolerance, title)
        files.append("budgets.png")
    write_whole(folder / "report.html", page(title, state, index, rows, means, maps, slices, failures, cfg.tolerance))

    report.print_table(table, f"{title}, {state}")
    for path in damaged:
        print(f"{path} is no whole result; start the sweep again to repeat that point")
    for label, error in failures:
        print(f"failed: {label}: {error}")
    print(f"written to {folder}/: {', '.join(files)}")


def check(cfg: DictConfig) -> None:
    if cfg.sweep is None:
        raise norton.InputError("no sweep: give sweep=DIR, the folder that `python -m experiments.ablation` names")
    budgets = steps.plain(cfg.budgets)
    if budgets is not None and not (isinstance(budgets, list) and all(_number(b, -100, 100) for b in budgets)):
        raise norton.InputError(f"budgets is {budgets!r}; it must be a list of percentages of MACs removed, e.g. [65]")
    if not _number(cfg.tolerance, 0, 100):
        raise norton.InputError(f"tolerance is {cfg.tolerance!r}; it must be a number of percentage points, e.g. 1")


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


# The points


def collect(sweep: Sweep, index: Mapping[str, Any]) -> tuple[list[Row], list[tuple[str, str]], list[Path]]:
    """The rows of the points that are done, (label, error) of those that failed, and the files that are damaged."""
    rows, failures, damaged = [], [], []
    for point, about in index["points"].items():
        try:
            record = read_result(sweep.result(point))
        except ValueError:
            damaged.append(sweep.result(point))
            continue
        if record is None:
            continue
        if record["status"] == "failed":
            failures.append((about["label"], record["error"]))
            continue
        rows.append(row(point, about, record))
    tell_apart_(rows)
    return rows, failures, damaged


def row(point: str, about: Mapping[str, Any], record: Mapping[str, Any]) -> Row:
    cfg, found = record["config"], record["result"]
    said = {}
    if "decompose" in cfg["steps"]:
        said["rank"] = cfg["rank"] if isinstance(cfg["rank"], int) else json.dumps(cfg["rank"])
    if "prune" in cfg["steps"]:
        said["rates"] = cfg["compress_rate"] if isinstance(cfg["compress_rate"], str) else str(cfg["compress_rate"])
        said["criterion"] = describe(cfg["pruning"])
    if steps.has_budget(asked := OmegaConf.create(cfg)):
        said["rank"] = steps.setting_text(asked)
        said |= {"rates": steps.rates_text(asked)} if steps.is_joint(asked) else {}
    # Whatever else was swept, by the name it was swept by; a group's choice says more than its settings.
    known = set(IN_LABEL) - {"way"}
    said |= {key: value.strip("'\"") for key, value in about["swept"].items() if key not in known}
    settings = flattened(record["meaning"])
    for key in SEEDS:
        settings.pop(key, None)
    speedup = found["dense_latency_ms"] / found["latency_ms"] if "latency_ms" in found else None
    return {
        "point": point,
        "said": said,
        "settings": settings,
        "seed": cfg["seed"],
        "arch": found["arch"],
        "data": found["data"],
        "dense": found["dense"],
        **{key: found.get(key) for key in MEASURED},
        "speedup": speedup,
        # A ratio to what was timed in turns with it can be compared across machines and busy hours.
        "latency_percent": speedup and 100 / speedup,
        "latency_form": found.get("latency_form"),
        "trained": bool(cfg["training"]["epochs"]) and "finetune" in cfg["steps"],
        "seconds": record["seconds"],
        "machine": record["machine"],
        "command": about["command"],
        "config": OmegaConf.to_yaml(OmegaConf.create(cfg)),
    }


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as dotted names."""
    flat = {}
    for key, value in settings.items():
        below = isinstance(value, Mapping) and key != "rank"  # ranks per layer are one setting
        flat |= flattened(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return flat


def mean_rate(rates: str) -> float:
    """By which rates are sorted: the mean of a list, one number itself; patterns come last."""
    try:
        return fmean(parse_rates(rates if "[" in rates else f"[{rates}]"))
    except InputError:
        return math.inf


def tell_apart_(rows: Sequence[Row]) -> None:
    """Give configurations that would be called the same, of an extended sweep, the settings in which they differ."""
    groups: dict[tuple, dict[str, dict]] = {}
    for one in rows:
        groups.setdefault(tuple(one["said"].items()), {})[identity(one["settings"])] = one["settings"]
    differing = {
        key
        for same in groups.values()
        for key in {key for settings in same.values() for key in settings}
        if len({json.dumps(settings.get(key)) for settings in same.values()}) > 1
    }
    for one in rows:
        for key in sorted(differing):
            value = one["settings"].get(key)
            one["said"].setdefault(key, value if isinstance(value, int | float | str) else json.dumps(value))


def constants_(rows: Sequence[Row]) -> list[str]:
    """What all configurations have in common, in words; it leaves their descriptions, unless nothing would be left."""
    same = [key for key in rows[0]["said"] if len({json.dumps(row["said"].get(key)) for row in rows}) == 1]
    if len(same) == len(rows[0]["said"]):
        return []
    words = [name({key: rows[0]["said"][key]}) for key in same]
    for one in rows:
        one["said"] = {key: value for key, value in one["said"].items() if key not in same}
    return words


def over_seeds(rows: Iterable[Row]) -> list[Row]:
    """Means over seeds: a row per configuration, with the standard deviation of its accuracies as `spread`."""
    groups: dict[str, list[Row]] = {}
    for one in rows:
        groups.setdefault(identity(one["settings"]), []).append(one)
    means = []
    for same in groups.values():
        values = {key: [one[key] for one in same if one[key] is not None] for key in MEASURED}
        mean = {key: fmean(found) if found else None for key, found in values.items()}
        mean["speedup"] = mean["latency_percent"] and 100 / mean["latency_percent"]  # not the mean of the ratios
        spread = stdev(values["top1"]) if len(same) > 1 else 0.0
        shown = {"said": same[0]["said"], "name": name(same[0]["said"]), "seeds": len(same), "spread": spread}
        means.append({**mean, **shown, "trained": same[0]["trained"]})
    return means


def uniform(rows: Sequence[Row]) -> list[Row]:
    """Rows with the keys of all of them, None where one has no such value."""
    keys = list(dict.fromkeys([*max(rows, key=len), *(key for row in rows for key in row)]))
    return [{key: row.get(key) for key in keys} for row in rows]


def dense_networks(rows: Sequence[Row]) -> list[Row]:
    """The networks that points come from: accuracy and costs."""
    return list({json.dumps(row["dense"]): row["dense"] | {"latency_percent": 100} for row in rows}.values())


def name(said: Mapping[str, Any]) -> str:
    return ", ".join(
        str(value) if key in ("rates", "criterion", "way") else f"{key} {value}" for key, value in said.items()
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front: the points (cost, accuracy) than which none costs no more and is better, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def heat_maps(means: Sequence[Row]) -> dict[str, tuple[list, list, list[list[float | None]]]]:
    """Criterion → (ranks, rates, accuracy at [rates][rank]), the best where something else was swept too."""
    maps = {}
    for criterion in dict.fromkeys(mean["said"].get("criterion") for mean in means):
        mine = [m for m in means if m["said"].get("criterion") == criterion and {"rank", "rates"} <= m["said"].keys()]
        ranks = sorted({m["said"]["rank"] for m in mine}, key=lambda rank: (isinstance(rank, str), rank))
        rates = sorted({m["said"]["rates"] for m in mine}, key=lambda rates: (mean_rate(rates), rates))
        best: dict[tuple, float] = {}
        for m in mine:
            key = m["said"]["rates"], m["said"]["rank"]
            best[key] = max(m["top1"], best.get(key, 0.0))
        # A few points that lie scattered are no map.
        if len(ranks) < 2 or len(rates) < 2 or 2 * len(best) <= len(ranks) * len(rates):
            continue
        maps[criterion] = (ranks, rates, [[best.get((rate, rank)) for rank in ranks] for rate in rates])
    return maps


def budget_slices(means: Sequence[Row], budgets: Sequence[float] | None, tolerance: float) -> dict[float, list[Row]]:
    """Percentage of MACs removed → the configurations within the tolerance of it, the best first.

    budgets: those to show; None: every multiple of 5 that at least two configurations spend differently.
    """
    wanted = range(5, 100, 5) if budgets is None else budgets
    slices = {}
    for budget in wanted:
        inside = [mean for mean in means if abs(mean["macs_removed_percent"] - budget) <= tolerance]
        if len(inside) > 1 or (inside and budgets is not None):
            slices[budget] = sorted(inside, key=lambda mean: -mean["top1"])
    return slices


def cells(mean: Row) -> Row:
    """A configuration as a row of a table."""
    spread = f" ± {mean['spread']:.2f}" if mean["seeds"] > 1 else ""
    before = {"before fine-tuning": f"{mean['top1_before']:.2f}"} if mean["trained"] else {}
    speed = {} if mean["speedup"] is None else {"times as fast": f"{mean['speedup']:.2f}"}
    return {
        **mean["said"],
        "top-1 %": f"{mean['top1']:.2f}{spread}",
        **before,
        "NMSE": None if mean["nmse"] is None else f"{mean['nmse']:.4f}",
        "MACs": report.millions(mean["macs"]),
        "MACs −%": mean["macs_removed_percent"],
        "params −%": mean["params_removed_percent"],
        **speed,
        "seeds": mean["seeds"],
    }


def flat(one: Row) -> Row:
    """A point as a row of the CSV file."""
    numbers = {key: one[key] for key in (*MEASURED, "latency_form", "seconds")}
    return {"point": one["point"], **one["said"], "seed": one["seed"], **numbers, "command": one["command"]}


def published(rows: Sequence[Row]) -> list[tuple[str, float, float | None, float | None]]:
    """The paper's points for this network on this data: (method, top-1, MACs, parameters); none for other data."""
    if len({(row["arch"], row["data"]) for row in rows}) > 1 or len(dense_networks(rows)) > 1:
        return []
    dense = rows[0]["dense"]
    if paper_tables.count(rows[0]["arch"], 0, None).params != dense["params"]:
        return []  # a narrower network than the published one
    found = []
    for line in paper_tables.read("classification.csv"):
        if (line["arch"], line["dataset"]) == (rows[0]["arch"], rows[0]["data"]) and line["top1_percent"]:
            found.append((line["method"], float(line["top1_percent"]), _count(line["macs"]), _count(line["params"])))
    return found


def _count(text: str) -> float | None:
    match = re.fullmatch(r"([\d.]+)([KMG])", text or "")
    return float(match[1]) * {"K": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else None


# Pictures


def pareto_picture(path: Path, means: Sequence[Row], rows: Sequence[Row], title: str) -> None:
    """Accuracy against MACs, parameters and latency, with the Pareto front of each."""
    from matplotlib.figure import Figure

    costs = [cost for cost in COSTS if any(mean[cost] is not None for mean in means)]
    figure = Figure(figsize=(4.8 * len(costs), 4.6), layout="constrained")
    axes = figure.subplots(1, len(costs), squeeze=False)[0]
    colours, markers = styles(means, report.COLOURS, MARKERS)
    for axis, cost in zip(axes, costs, strict=True):
        label, unit = COSTS[cost]
        position = PUBLISHED.get(cost)
        background = [(p[position] / unit, p[1]) for p in published(rows) if position and p[position]]
        if background:
            axis.scatter(*zip(*background, strict=True), color="#c8c8c8", s=14)
        measured = [mean for mean in means if mean[cost] is not None]
        for mean in measured:
            style = {"color": colours(mean), "marker": markers(mean), "markersize": 6, "capsize": 2, "zorder": 3}
            axis.errorbar(mean[cost] / unit, mean["top1"], yerr=mean["spread"] or None, **style)
        xs, ys = zip(*front([(mean[cost] / unit, mean["top1"]) for mean in measured]), strict=True)
        axis.step(xs, ys, where="post", color="#8c8c8c", linewidth=1, linestyle="--")
        for dense in dense_networks(rows):
            axis.plot(dense[cost] / unit, dense["top1"], marker="*", color="black", markersize=11, linestyle="")
        axis.set(xlabel=label, ylabel="top-1 %")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=_legend(means, colours, markers), loc="outside lower center", ncols=10, fontsize=8)
    report.save_figure(path, figure, title)


def _legend(means: Sequence[Row], colours, markers) -> list:
    from matplotlib.lines import Line2D

    others = {marker_key(mean): markers(mean) for mean in means}
    words = {colour_key(mean): {"color": colours(mean), "marker": "o"} for mean in means}
    if len(others) > 1:
        words |= {other: {"color": "#555555", "marker": marker} for other, marker in others.items()}
    words["dense"] = {"color": "black", "marker": "*", "markersize": 10}
    return [Line2D([], [], linestyle="", label=word, **style) for word, style in words.items() if word]


def colour_key(mean: Row) -> str | None:
    """What colours tell apart: ways to spend a budget, else ranks, else rates."""
    said = mean["said"]
    if "way" in said:
        return str(said["way"])
    return f"rank {said['rank']}" if "rank" in said else said.get("rates")


def marker_key(mean: Row) -> str:
    """What markers tell apart: criteria, and whatever else was swept beside ranks and rates."""
    said = {key: value for key, value in mean["said"].items() if key not in ("way", "rank", "rates")}
    return ", ".join(
        str(value) if key == "criterion" else f"{key.split('.')[-1]} {value}" for key, value in said.items()
    )


def styles(means: Sequence[Row], colours: Sequence[str], markers: Sequence[str]):
    """Functions from a configuration to its colour and its marker."""
    keys = list(dict.fromkeys(colour_key(mean) for mean in means))
    others = list(dict.fromkeys(marker_key(mean) for mean in means))
    return (
        lambda mean: colours[keys.index(colour_key(mean)) % len(colours)],
        lambda mean: markers[others.index(marker_key(mean)) % len(markers)],
    )


def heat_picture(path: Path, maps: Mapping[str, tuple], title: str) -> None:
    """Accuracy over rank and rates, a map per criterion."""
    from matplotlib.figure import Figure

    ranks, rates, _ = next(iter(maps.values()))
    size = (max(4.5, 2.2 + 0.75 * len(ranks)) * len(maps), 1.8 + 0.45 * len(rates))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, (criterion, (ranks, rates, values)) in zip(axes, maps.items(), strict=True):
        table = [[float("nan") if value is None else value for value in line] for line in values]
        image = axis.imshow(table, aspect="auto", cmap="viridis")
        axis.set_xticks(range(len(ranks)), ranks)
        axis.set_yticks(range(len(rates)), rates, fontsize=7)
        axis.set(xlabel="rank", title=f"{criterion}: top-1 %" if criterion else "top-1 %")
        low, high = image.get_clim()
        for y, x in ((y, x) for y in range(len(rates)) for x in range(len(ranks)) if values[y][x] is not None):
            colour = "black" if values[y][x] > (low + high) / 2 else "white"
            axis.text(x, y, f"{values[y][x]:.1f}", ha="center", va="center", fontsize=8, color=colour)
    report.save_figure(path, figure, title)


def budget_picture(path: Path, slices: Mapping[float, Sequence[Row]], tolerance: float, title: str) -> None:
    """A panel per budget: the accuracies of the configurations that spend it."""
    from matplotlib.figure import Figure

    tallest = max(len(found) for found in slices.values())
    figure = Figure(figsize=(7, 1.2 + sum(0.7 + 0.3 * len(found) for found in slices.values())), layout="constrained")
    heights = [1 + len(found) for found in slices.values()]
    axes = figure.subplots(len(slices), 1, squeeze=False, height_ratios=heights)[:, 0]
    low, high = _range([mean for found in slices.values() for mean in found])
    for axis, (budget, found) in zip(axes, slices.items(), strict=True):
        names = [mean["name"] for mean in found]
        scores = [mean["top1"] for mean in found]
        spreads = [mean["spread"] for mean in found] if any(mean["seeds"] > 1 for mean in found) else None
        axis.errorbar(scores, names, xerr=spreads, fmt="o", color=report.COLOURS[0], capsize=3)
        for name, score in zip(names, scores, strict=True):
            offset = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axis.annotate(f"{score:.2f}", (score, name), fontsize=7, **offset)
        axis.set_ylim(len(found) - 0.5, -0.8)
        axis.grid(axis="y", linewidth=0.3)
        axis.tick_params(labelsize=7 if tallest < 20 else 5)
        axis.set(xlim=(low, high), title=f"{budget:g} ± {tolerance:g} % fewer MACs")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("top-1 %")
    report.save_figure(path, figure, title)


def _range(means: Sequence[Row]) -> tuple[float, float]:
    """An axis on which differences show."""
    least, most = min(m["top1"] - m["spread"] for m in means), max(m["top1"] + m["spread"] for m in means)
    room = max(1.0, (most - least) * 0.25)
    return max(0.0, least - room), most + room


# The page


def page(title, state, index, rows, means, maps, slices, failures, tolerance) -> str:
    """The report as one HTML file, with plotly inside."""
    figures = {
        f"pareto_{cost}": pareto_figure([mean for mean in means if mean[cost] is not None], rows, cost)
        for cost in COSTS
        if any(mean[cost] is not None for mean in means)
    }
    table = uniform([columns(row) for row in rows])
    heat = {f"heat_{number}": heat_figure(criterion, *found) for number, (criterion, found) in enumerate(maps.items())}
    budgets = {f"budget_{budget:g}": budget_figure(budget, found, tolerance) for budget, found in slices.items()}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text()).render(
        title=title,
        state=state,
        denses=dense_networks(rows),
        trained=any(row["trained"] for row in rows),
        machines=sorted({row["machine"] for row in rows}),
        commands=index["commands"],
        failures=failures,
        sections={
            "Accuracy against cost": ("The dashed line is the Pareto front; the star is the dense network.", figures),
            "Rank against ratio": ("Accuracy over rank and rates, a map per criterion.", heat),
            "The same budget, spent differently": ("Configurations that remove about equally many MACs.", budgets),
        },
        plots={key: json.loads(figure.to_json()) for key, figure in (figures | heat | budgets).items()},
        columns=list(table[0]),
        table=[(line, row["command"], row["config"]) for line, row in zip(table, rows, strict=True)],
        means=uniform([cells(mean) for mean in means]),
        plotly=get_plotlyjs(),
    )


def columns(one: Row) -> Row:
    """A point as a row of the page's table."""
    return {
        **one["said"],
        "seed": one["seed"],
        "top-1 %": _rounded(one["top1"], 2),
        "before fine-tuning": _rounded(one["top1_before"], 2),
        "NMSE": _rounded(one["nmse"], 4),
        "MACs (M)": _rounded(one["macs"] / 1e6, 2),
        "MACs −%": _rounded(one["macs_removed_percent"], 2),
        "params (M)": _rounded(one["params"] / 1e6, 3),
        "params −%": _rounded(one["params_removed_percent"], 2),
        "latency ms": _rounded(one["latency_ms"], 2),
        "times as fast": _rounded(one["speedup"], 2),
    }


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def pareto_figure(means: Sequence[Row], rows: Sequence[Row], cost: str) -> go.Figure:
    label, unit = COSTS[cost]
    figure = go.Figure()
    position = PUBLISHED.get(cost)
    background = [p for p in published(rows) if position and p[position]]
    if background:
        xs, ys, names = [p[position] / unit for p in background], [p[1] for p in background], [p[0] for p in background]
        style = {"mode": "markers", "marker": {"color": "#c8c8c8", "size": 6}, "name": "paper"}
        figure.add_scatter(x=xs, y=ys, text=names, hovertemplate="%{text}: %{y:.2f}%<extra>paper</extra>", **style)
    colours, symbols = styles(means, report.COLOURS, SYMBOLS)
    several = len({marker_key(mean) for mean in means}) > 1
    traces: dict[str, list[Row]] = {}
    for mean in means:
        words = [colour_key(mean), marker_key(mean) if several else None]
        traces.setdefault(", ".join(filter(None, words)), []).append(mean)
    for key, mine in traces.items():
        figure.add_scatter(
            x=[mean[cost] / unit for mean in mine],
            y=[mean["top1"] for mean in mine],
            error_y={"array": [mean["spread"] for mean in mine], "visible": any(mean["seeds"] > 1 for mean in mine)},
            text=[mean["name"] for mean in mine],
            mode="markers",
            name=key or "points",
            marker={"color": colours(mine[0]), "symbol": symbols(mine[0]), "size": 9},
            hovertemplate="%{text}<br>%{y:.2f}% at %{x:.3g}<extra></extra>",
        )
    xs, ys = zip(*front([(mean[cost] / unit, mean["top1"]) for mean in means]), strict=True)
    line = {"dash": "dash", "color": "#8c8c8c", "width": 1, "shape": "hv"}
    figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="Pareto front", hoverinfo="skip")
    denses, marker = dense_networks(rows), {"symbol": "star", "color": "black", "size": 13}
    xs, ys = [dense[cost] / unit for dense in denses], [dense["top1"] for dense in denses]
    figure.add_scatter(x=xs, y=ys, mode="markers", marker=marker, name="dense")
    return _layout(figure, xaxis_title=label, yaxis_title="top-1 %")


def heat_figure(criterion: str, ranks: list, rates: list, values: list[list]) -> go.Figure:
    text = [["" if value is None else f"{value:.1f}" for value in line] for line in values]
    figure = go.Figure(
        go.Heatmap(
            x=[str(rank) for rank in ranks],
            y=rates,
            z=values,
            text=text,
            texttemplate="%{text}",
            colorscale="Viridis",
            colorbar={"thickness": 12},
            hovertemplate="rank %{x}, %{y}: %{z:.2f}%<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    figure.update_xaxes(type="category")
    return _layout(
        figure,
        title=f"{criterion}: top-1 %" if criterion else "top-1 %",
        xaxis_title="rank",
        height=220 + 32 * len(rates),
    )


def budget_figure(budget: float, found: Sequence[Row], tolerance: float) -> go.Figure:
    low, high = _range(found)
    points = go.Scatter(
        x=[mean["top1"] for mean in found],
        y=[mean["name"] for mean in found],
        error_x={"array": [mean["spread"] for mean in found], "visible": any(mean["seeds"] > 1 for mean in found)},
        mode="markers+text",
        marker={"color": report.COLOURS[0], "size": 9},
        text=[f"{mean['top1']:.2f}" for mean in found],
        textposition="top center",
        hovertemplate="%{y}: %{x:.2f}%<extra></extra>",
    )
    figure = go.Figure(points)
    figure.update_yaxes(range=[len(found) - 0.5, -0.8], automargin=True)
    figure.update_xaxes(range=[low, high])
    title = f"{budget:g} ± {tolerance:g} % fewer MACs"
    return _layout(figure, title=title, xaxis_title="top-1 %", height=170 + 35 * len(found))


def _layout(figure: go.Figure, height: int = 400, **layout) -> go.Figure:
    small = {"l": 50, "r": 15, "t": 40 if "title" in layout else 15, "b": 45}
    legend = {"orientation": "h", "y": -0.2}
    return figure.update_layout(template="plotly_white", margin=small, legend=legend, height=height, **layout)


if __name__ == "__main__":
    run()
