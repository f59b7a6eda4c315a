"""Measure a checkpoint and verify what it claims: accuracy, MACs, parameters; file size and latency beside them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import norton
from norton.checkpoints import claims, verification
from norton.cli import pictures, program, tables
from norton.cli.published_flags import translate
from norton.cli.rows import cost_row, dense_cost, macs_panel
from norton.cli.settings import check_settings
from norton.cli.verification import Verification, verify
from norton.common.files import write_json
from norton.deployment.comparing import deploy_alike
from norton.measure.latency import latencies


@program.script("evaluate", translate)
def main(cfg: DictConfig) -> int:
    if cfg.checkpoint is None:
        raise norton.InputError("no checkpoint: give checkpoint=FILE")
    check_settings(cfg)
    found = verify(cfg, claims.registry_entry(cfg.checkpoint))
    if found.accuracy is None and found.verdict.code != verification.FAILS:
        show(cfg, found)
        raise norton.InputError(f"the claim {found.verdict.text}")
    rows, metrics = [network_row(cfg, found)], found.as_dict()
    if found.accuracy is not None and cfg.latency_batch is not None:
        batch = found.data.images(cfg.split, min(cfg.latency_batch, len(getattr(found.data.splits, cfg.split))))
        nets = deploy_alike({"net": found.net}, batch, cfg.latency, progress=True)
        latency = latencies(nets, batch)["net"]
        rows[0] |= {f"ms / {len(batch)} images": latency.milliseconds, "computed as": latency.form}
        metrics |= {"latency_ms": latency.milliseconds, "latency_batch": len(batch), "latency_form": latency.form}

    folder = program.open_folder(cfg)
    write_json(folder / "metrics.json", metrics)
    tables.write_table(folder / "table.md", found.verdict.rows)
    title = f"{found.net.arch}, {cfg.checkpoint}"
    pictures.layer_picture(folder / "picture.png", macs_panel(found.net, found.cost), title)
    tables.print_table(rows, cfg.checkpoint)
    show(cfg, found)
    print(f"the claim {found.verdict.text}")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")
    if found.accuracy is not None and "top1" in found.accuracy:
        print(f" * Acc@1 {found.accuracy['top1']:.3f} Acc@5 {found.accuracy['top5']:.3f}")  # the published last line
    return found.verdict.code


def network_row(cfg: DictConfig, found: Verification) -> dict[str, Any]:
    return {
        "network": found.net.arch,
        "data": f"{found.data.name}, {found.split}" if found.data else None,
        **cost_row(found.cost, dense_cost(found.net)),
        "file MB": Path(cfg.checkpoint).stat().st_size / 1e6,
    }


def show(cfg: DictConfig, found: Verification) -> None:
    """Print what is claimed beside what was measured."""
    tables.print_table(found.verdict.rows, "claimed and measured")
    for note in found.notes:
        print(f"note: {note}")
