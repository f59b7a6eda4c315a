"""Count the MACs and parameters of a network."""

from omegaconf import DictConfig

import norton
from norton import cli, report, steps
from norton.counting import percent_removed
from norton.files import write_json


@cli.script("complexity")
def run(cfg: DictConfig) -> None:
    if cfg.checkpoint is not None:
        net, _ = steps.open_network(cfg, told=True)
    elif cfg.model.arch is not None:
        net = norton.build(
            cfg.model.arch, steps.plain(cfg.rank) or 0, steps.plain(cfg.compress_rate), cfg.model.num_classes
        )
    else:
        raise norton.InputError("no network: give model=NAME, or checkpoint=FILE")
    size = tuple(cfg.input_size) if cfg.input_size else None
    cost = norton.complexity(net, size, convention=cfg.convention)
    dense = steps.dense_cost(net, cfg.convention, size)

    folder = cli.open_folder(cfg)
    rows = [
        {
            "layer": name,
            "type": type(net.get_submodule(name)).__name__,
            "MACs": f"{c.macs:,}",
            "params": f"{c.params:,}",
        }
        for name, c in cost.by_layer.items()
        if c.macs or c.params
    ]
    removed = {
        "macs_removed_percent": percent_removed(cost.macs, dense.macs),
        "params_removed_percent": percent_removed(cost.params, dense.params),
    }
    write_json(folder / "metrics.json", {**cost.as_dict(), **removed})
    report.write_table(folder / "table.md", rows)
    report.layer_picture(
        folder / "picture.png", steps.macs_panel(net, cost), f"{type(net).__name__}: {cost.macs:,} MACs"
    )

    if cfg.by_layer:
        report.print_table(rows, type(net).__name__)
    print(f"MACs    {cost.macs}  ({removed['macs_removed_percent']:.2f}% removed, convention {cost.convention})")
    print(f"params  {cost.params}  ({removed['params_removed_percent']:.2f}% removed)")
    if cost.params != cost.params_printed:
        print(f"        {cost.params_printed} without the biases of decomposed layers, as the published tables count")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")


if __name__ == "__main__":
    run()
