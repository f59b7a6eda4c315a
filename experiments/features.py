"""What compression does to the features: Grad-CAM maps of a dense network beside those of its compressed versions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset

import norton
from experiments.explanation.maps import CHANCE, Explanation, agreement, explain, statistics
from experiments.nmse import open_files
from norton.cli import opening, pictures, program, tables
from norton.cli.data_checks import check_classes
from norton.cli.images import normalisation_of
from norton.cli.rows import dense_cost
from norton.cli.settings import check_settings, plain
from norton.common.checks import check_whole_number
from norton.common.files import write_json
from norton.data.normalising import Normalisation
from norton.data.pictures import image_files, read_files
from norton.data.splits import generator
from norton.graph.logits import logits_in
from norton.graph.plan import plan_of
from norton.measure.counting import percent_removed
from norton.measure.gradcam import explainable, explained_layer, map_correlation

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

MOST_ROWS = 20  # of the figure


class Pictures(NamedTuple):
    """What the figure shows: images (N, 3, H, W), normalised; classes (N,), or masks (N, H, W), if known; names."""

    images: Tensor
    classes: Tensor | None
    names: list[str]


@program.script("features")
def main(cfg: DictConfig) -> None:
    check(cfg)
    dense, origin = opening.open_network(cfg)
    opening.choose_data(cfg, dense, opening.about_of(dense, origin))
    nets = open_networks(dense, cfg)
    asked = None if cfg.layer is None else str(cfg.layer)  # those of a Sequential are read as numbers
    layer = explained_layer(explainable(dense), asked)
    # The user's own files need no data set, unless there are to be statistics over it.
    about = opening.open_data(cfg, dense)
    data = about if cfg.statistics_images else None
    if data is not None:
        check_classes(dense, data)
        check_outputs(dense, data)
    drawn = draw(data.splits.test, cfg) if data is not None else []
    shown = own_pictures(cfg, dense, about) if not isinstance(cfg.images, int) else drawn_pictures(cfg, data, drawn)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    explained = {name: explainable(net).to(device) for name, net in nets.items()}
    views = explain(explained, layer, shown.images, shown.classes, cfg.target)
    folder = program.open_folder(cfg)
    likeness = statistics(explained, layer, batches(cfg, data, drawn, shown), cfg.target)

    costs = describe(nets, dense)
    results = {name: {**costs[name], **likeness[name].summary()} for name in nets}
    classes = data.classes if data is not None else tuple(str(number) for number in range(dense.num_classes))
    metrics = {"arch": dense.arch, "data": data.name if data else None, "layer": layer, "target": cfg.target}
    chance = likeness[CHANCE].summary() | {"agreement_percent": None}
    metrics |= {"networks": results, "chance": chance, "shown": shown_metrics(shown, views, classes)}
    write_json(folder / "metrics.json", metrics)
    pixels = next(iter(views.values())).predicted.dim() > 1
    rows = [row(name, result, pixels) for name, result in {**results, CHANCE: chance}.items()]
    tables.write_table(folder / "table.md", rows)
    title = f"Grad-CAM at {layer} of {dense.arch}"
    figure(folder / "features.png", shown, views, column_titles(results), classes, title, about.normalisation)
    tables.print_table(rows, f"{title}: {next(iter(results.values()))['images']} images")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, features.png")


def check(cfg: DictConfig) -> None:
    """Raise InputError for settings that need no network to be found bad."""
    check_settings(cfg)
    if cfg.target is True:  # what Hydra makes of target=true
        cfg.target = "true"
    for name, least in (("statistics_images", 0), ("batch_size", 1)):
        check_whole_number(name, cfg[name], least)
    if cfg.target not in ("dense", "true"):
        raise norton.InputError(f"target is {cfg.target!r}; choose dense (the dense network's prediction) or true")
    images = plain(cfg.images)
    if isinstance(images, bool) or not isinstance(images, int | str | list) or not images:
        raise norton.InputError(f"images is {images!r}; give a number, a folder, or a list of image files")
    if isinstance(images, int) and not 1 <= images <= MOST_ROWS:
        raise norton.InputError(f"images is {images}; a figure has 1 to {MOST_ROWS} rows")
    if isinstance(images, int) and images > cfg.statistics_images:
        raise norton.InputError(
            f"statistics_images is {cfg.statistics_images}; the {images} images of the figure are among them, so give "
            "at least as many"
        )
    if not isinstance(images, int) and cfg.target == "true":
        raise norton.InputError("target=true: the true class of image files is not known; use target=dense")


def check_outputs(dense: nn.Module, data: "ClassificationData") -> None:
    """Raise InputError for a network that does not give what the labels of the data are for."""
    with torch.no_grad():
        logits = logits_in(explainable(dense)(torch.zeros(1, *dense.input_size)))
    if not isinstance(logits, Tensor) or logits.dim() != (4 if data.task == "segmentation" else 2):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise norton.InputError(
            f"the network gives {shape}, and the data {data.name} are for {data.task}; choose others"
        )


def open_networks(dense: nn.Module, cfg: DictConfig) -> dict[str, nn.Module]:
    """Label → network: the dense one first, then those of `compressed=`."""
    if cfg.compressed is None:
        raise norton.InputError("no compressed networks; give compressed=[FILE,...]")
    files = open_files(cfg)
    for path, net in files.items():
        if (net.arch, net.num_classes) != (dense.arch, dense.num_classes):
            raise norton.InputError(
                f"{path}: is a {net.arch} of {net.num_classes} classes, the dense network a {dense.arch} of "
                f"{dense.num_classes}; give compressed versions of that network"
            )
    if plan_of(dense):
        names = tables.labels([str(cfg.checkpoint), *files])
    else:
        own = tables.labels(list(files))
        names = ["dense", *(own if "dense" not in own else files)]
    return dict(zip(names, [dense, *files.values()], strict=True))


# The images


def draw(dataset: Dataset, cfg: DictConfig) -> list[int]:
    """Which images the statistics are over, in a seeded order."""
    if cfg.statistics_images > len(dataset):
        raise norton.InputError(f"statistics_images is {cfg.statistics_images}; the test split has {len(dataset)}")
    return torch.randperm(len(dataset), generator=generator(cfg.seed))[: cfg.statistics_images].tolist()


def drawn_pictures(cfg: DictConfig, data: "ClassificationData", drawn: Sequence[int]) -> Pictures:
    """The first of the drawn images, of as many classes as possible; those with masks as they come."""
    if data.task == "segmentation":
        pairs = [data.splits.test[index] for index in drawn[: cfg.images]]
        names = [f"test image {index}" for index in drawn[: cfg.images]]
        return Pictures(*(torch.stack(part) for part in zip(*pairs, strict=True)), names)
    first: list[tuple[Tensor, int]] = []
    more: list[tuple[Tensor, int]] = []
    seen: set[int] = set()
    for index in drawn:
        image, label = data.splits.test[index]
        (more if int(label) in seen else first).append((image, int(label)))
        seen.add(int(label))
        if len(first) == cfg.images:
            break
    chosen, classes = zip(*(first + more)[: cfg.images], strict=True)
    return Pictures(torch.stack(chosen), torch.tensor(classes), [data.classes[label] for label in classes])


def own_pictures(cfg: DictConfig, net: nn.Module, data: "ClassificationData") -> Pictures:
    """The user's image files, prepared and normalised as the data are for evaluation."""
    files = image_files(plain(cfg.images))
    if len(files) > MOST_ROWS:
        raise norton.InputError(f"images: {len(files)} files; a figure has at most {MOST_ROWS} rows, list some of them")
    how = normalisation_of(data)
    return Pictures(read_files(files, net.input_size, how, data.name), None, [file.name for file in files])


def displayable(image: Tensor, how: Normalisation | None) -> Tensor:
    """A normalised image (C, H, W) as people see it: (H, W, 3) in [0, 1]."""
    if how is not None:
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in how)
        image = image * std + mean
    else:
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    return image.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)


def batches(
    cfg: DictConfig, data: "ClassificationData", drawn: Sequence[int], shown: Pictures
) -> Iterable[tuple[Tensor, Any]]:
    """Batches (images, classes) for the statistics; the shown images where no others were asked for."""
    if data is None:
        return [(shown.images, shown.classes)]
    return data.some_of("test", drawn, cfg.batch_size)


# The results


def describe(nets: Mapping[str, nn.Module], dense: nn.Module) -> dict[str, dict[str, Any]]:
    """Label → MACs, and how many percent of the dense network's were removed."""
    whole = dense_cost(dense).macs
    macs = {name: norton.complexity(net).macs for name, net in nets.items()}
    return {name: {"macs": n, "macs_removed_percent": percent_removed(n, whole)} for name, n in macs.items()}


def row(name: str, result: Mapping[str, Any], pixels: bool) -> dict[str, Any]:
    def cell(key: str) -> str | None:
        return None if result[key] is None else f"{result[key]:.3f}"

    return {
        "network": name,
        "MACs removed %": result.get("macs_removed_percent"),
        "correlation, mean": cell("mean_correlation"),
        "correlation, std": cell("std_correlation"),
        "pixels of the same class as dense %" if pixels else "same class as dense %": result["agreement_percent"],
        "images without a map": result["images_without_map"],
    }


def shown_metrics(shown: Pictures, views: Mapping[str, Explanation], classes: Sequence[str]) -> list[dict]:
    """What stands in the figure, as plain data."""
    dense = next(iter(views.values()))
    correlations = {name: map_correlation(view.maps, dense.maps).tolist() for name, view in views.items()}
    rows = []
    for number, name in enumerate(shown.names):
        networks = {
            label: {**told(view, dense, number, classes), "correlation": _number(correlations[label][number])}
            for label, view in views.items()
        }
        rows.append({"image": name, "networks": networks})
    return rows


def told(view: Explanation, dense: Explanation, number: int, classes: Sequence[str]) -> dict[str, Any]:
    """What a network says of an image: its class, or how many pixels are of the dense network's class."""
    if view.predicted.dim() == 1:
        return {"predicted": classes[view.predicted[number]]}
    same = 100 * agreement(view, dense)[number].item()
    return {"explained": classes[view.explained[number]], "same_pixels_percent": same}


def _number(value: float) -> float | None:
    return None if value != value else value  # JSON has no NaN


def column_titles(results: Mapping[str, dict]) -> dict[str, str]:
    """Label → what was removed, with the labels below where that alone does not tell networks apart."""
    short = {name: f"{0 - result['macs_removed_percent']:+.0f}% MACs" for name, result in results.items()}
    short = {name: name if name == "dense" else title.replace("-", "−") for name, title in short.items()}
    if len(set(short.values())) == len(short):
        return short
    return {name: title if title == name else f"{title}\n{name[-24:]}" for name, title in short.items()}


def figure(
    path: Path,
    shown: Pictures,
    views: Mapping[str, Explanation],
    titles: Mapping[str, str],
    classes: Sequence[str],
    title: str,
    how: Normalisation | None,
) -> None:
    """A row per image, a column per network; below each map the predicted class and the correlation with the dense."""
    from matplotlib.figure import Figure

    count = len(shown.names)
    picture = Figure(figsize=(max(4.6, 1.9 * (1 + len(views))), 2.15 * count + 1), layout="constrained")
    axes = picture.subplots(count, 1 + len(views), squeeze=False)
    dense = next(iter(views.values()))
    pixels = dense.predicted.dim() > 1
    right = dense.explained if pixels else dense.predicted if shown.classes is None else shown.classes
    for number, line in enumerate(axes):
        image = displayable(shown.images[number], how)
        line[0].imshow(image)
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_xlabel(shorten(shown.names[number]), fontsize=9)
        for axis, view in zip(line[1:], views.values(), strict=True):
            heat, named = view.maps[number], (view.explained if pixels else view.predicted)[number]
            label, wrong = shorten(classes[named]), bool(named != right[number])
            axis.imshow(image.mean(2), cmap="gray", vmin=0, vmax=1)  # without colours of its own below the heat's
            if heat.max() > 0:
                axis.imshow(heat / heat.max(), cmap="turbo", alpha=0.5, vmin=0, vmax=1)
            if pixels and len((found := view.predicted[number] == named).unique()) > 1:
                axis.contour(found, levels=[0.5], colors="white", linewidths=0.8)
            likeness = (
                "\nno map" if heat.max() <= 0 else "" if view is dense else f"\nr = {likeness_of(view, dense, number)}"
            )
            axis.set_xlabel(f"{label} ✗{likeness}" if wrong else label + likeness, fontsize=9)
            axis.xaxis.label.set_color("#c44e52" if wrong else "black")
    first = "image" if shown.classes is None or pixels else "image, true class"
    for axis, head in zip(axes[0], [first, *titles.values()], strict=True):
        axis.set_title(head, fontsize=10)
    mark = "; ✗: not the dense network's class" if shown.classes is None else "; ✗: wrong class"
    mark = "\nwhite: around the pixels it takes for that class" if pixels else mark
    pictures.save_figure(path, picture, f"{title}\nr: correlation with the dense map{mark}")


def likeness_of(view: Explanation, dense: Explanation, number: int) -> str:
    """The correlation of a network's map of an image with that of the dense one."""
    found = map_correlation(view.maps[number, None], dense.maps[number, None]).item()
    return "–" if found != found else f"{found:.2f}"


def shorten(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


if __name__ == "__main__":
    main()
