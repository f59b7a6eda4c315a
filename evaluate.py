"""Measure a checkpoint: accuracy, MACs, parameters, file size, latency."""

from pathlib import Path

from omegaconf import DictConfig

import norton
from norton import cli, report, steps
from norton.files import write_json
from norton.latency import latencies


@cli.script("evaluate")
def run(cfg: DictConfig) -> None:
    if cfg.checkpoint is None:
        raise norton.InputError("no checkpoint: give checkpoint=FILE")
    if cfg.split not in ("test", "val"):
        raise norton.InputError(f"split is {cfg.split!r}; choose one of test, val")
    steps.check_settings(cfg)
    net, origin = steps.open_network(cfg, told=True)
    data = steps.open_data(cfg)
    accuracy = steps.evaluate(net, cfg, data, cfg.split)
    cost, dense = norton.complexity(net), steps.dense_cost(net)
    latency = latencies({"net": net}, data.calibration_images(cfg.latency_batch))["net"]
    comparable = cfg.split == "test" and origin["metrics"].get("data", data.name) == data.name
    claimed = origin["metrics"].get("top1") if comparable else None

    row = {
        "network": f"{net.arch}",
        f"{cfg.split} top-1 %": accuracy["top1"],
        "claimed %": claimed,
        "top-5 %": accuracy["top5"],
        **steps.cost_row(cost, dense),
        "file MB": Path(cfg.checkpoint).stat().st_size / 1e6,
        f"ms / {cfg.latency_batch} images": latency.milliseconds,
    }
    metrics = {**accuracy, "claimed_top1": claimed, "macs": cost.macs, "params": cost.params}
    folder = cli.open_folder(cfg)
    write_json(folder / "metrics.json", {**metrics, "latency_ms": latency.milliseconds, "latency_form": latency.form})
    report.write_table(folder / "table.md", [row])
    report.layer_picture(
        folder / "picture.png", steps.macs_panel(net, cost), f"{net.arch}: {accuracy['top1']:.2f}% top-1 on {data.name}"
    )
    report.print_table([row], f"{cfg.checkpoint} on {data.name}")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")


if __name__ == "__main__":
    run()
