"""Measure a checkpoint and verify what it claims: accuracy, MACs, parameters; file size and latency beside them."""

from pathlib import Path

from omegaconf import DictConfig

import norton
from norton import cli, report, steps
from norton.claims import FAILS
from norton.files import write_json
from norton.flags import translate
from norton.latency import latencies


@cli.script("evaluate", translate)
def run(cfg: DictConfig) -> int:
    if cfg.checkpoint is None:
        raise norton.InputError("no checkpoint: give checkpoint=FILE")
    if cfg.split not in ("test", "val"):
        raise norton.InputError(f"split is {cfg.split!r}; choose one of test, val")
    steps.check_settings(cfg)
    found = steps.verify(cfg)
    if found.accuracy is None:
        show_claims(cfg, found)
        if found.verdict.code == FAILS:
            return FAILS
        raise norton.InputError(f"the claim {found.verdict.text}")
    latency = latencies({"net": found.net}, found.data.images(cfg.split, cfg.latency_batch))["net"]
    row = {
        "network": found.net.arch,
        "data": f"{found.data.name}, {cfg.split}",
        **steps.cost_row(found.cost, steps.dense_cost(found.net)),
        "file MB": Path(cfg.checkpoint).stat().st_size / 1e6,
        f"ms / {cfg.latency_batch} images": latency.milliseconds,
    }
    metrics = {**found.as_dict(), "split": cfg.split, "latency_ms": latency.milliseconds, "latency_form": latency.form}

    folder = cli.open_folder(cfg)
    write_json(folder / "metrics.json", metrics)
    report.write_table(folder / "table.md", found.verdict.rows)
    title = f"{found.net.arch}: {found.accuracy['top1']:.2f}% top-1 on {found.data.name}"
    report.layer_picture(folder / "picture.png", steps.macs_panel(found.net, found.cost), title)
    report.print_table([row], cfg.checkpoint)
    show_claims(cfg, found)
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")
    print(f" * Acc@1 {found.accuracy['top1']:.3f} Acc@5 {found.accuracy['top5']:.3f}")  # the published last line
    return found.verdict.code


def show_claims(cfg: DictConfig, found: steps.Verification) -> None:
    """Print what is claimed beside what was measured, and the verdict."""
    report.print_table(found.verdict.rows, f"{Path(cfg.checkpoint).name}: claimed and measured")
    for note in found.notes:
        print(f"note: {note}")
    if found.accuracy is not None or found.verdict.code == FAILS:
        print(f"the claim {found.verdict.text}")


if __name__ == "__main__":
    run()
