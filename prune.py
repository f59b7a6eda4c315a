"""Prune the filters of a network, decomposed or not."""

from omegaconf import DictConfig

import norton
from norton.cli import program, report, steps
from norton.common.files import write_json
from norton.pruning import describe


@program.script("prune")
def run(cfg: DictConfig) -> None:
    program.check_folder(cfg)
    steps.check_settings(cfg)
    net, origin = steps.open_network(cfg)
    small = steps.prune(net, cfg)
    steps.calibrate_(small, cfg)

    before, after = norton.complexity(net), norton.complexity(small)
    rows, left = steps.width_rows(net, small), steps.left_whole(net, cfg)
    filters = {row["layer"]: row["after"] for row in rows}
    metrics = {**steps.inherited(origin), "macs": after.macs, "params": after.params, "filters": filters}
    record = steps.lineage_record("prune", cfg, ("compress_rate", "pruning", "calibration"))
    folder = program.open_folder(cfg)  # only now: bad input must not leave a folder behind
    norton.save(small, folder / "model.pt", metrics=metrics, lineage=[*origin["lineage"], record])
    write_json(folder / "metrics.json", {**metrics, "left_whole": left})
    report.write_table(folder / "table.md", rows)
    panels = {f"filters {when}": {row["layer"]: row[when] for row in rows} for when in ("before", "after")}
    report.layer_picture(folder / "picture.png", panels, f"{type(net).__name__}, {cfg.compress_rate}")

    report.print_table(rows, f"{type(net).__name__} pruned by {describe(cfg.pruning)} at {cfg.compress_rate}")
    if whole := steps.whole_rows(left):
        report.print_table(whole, "left whole, and why")
    report.print_table([{"": "network", **steps.cost_row(after, before)}])
    print(f"written to {folder}/: model.pt, config.yaml, metrics.json, table.md, picture.png")
    print(f"next: {steps.evaluation(net, folder / 'model.pt')}")


if __name__ == "__main__":
    run()
