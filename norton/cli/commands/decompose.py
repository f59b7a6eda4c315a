"""Decompose the convolutions of a network."""

from omegaconf import DictConfig

import norton
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.budgets import spend_budget
from norton.cli.chain import lineage_record
from norton.cli.hints import evaluation
from norton.cli.rows import cost_row, layer_rows
from norton.cli.settings import check_settings, has_budget, setting_text
from norton.common.files import write_json


@program.script("decompose")
def main(cfg: DictConfig) -> None:
    program.check_folder(cfg)
    check_settings(cfg)
    net, origin = opening.open_network(cfg)
    asked, setting, choice = cfg, setting_text(cfg), None
    if has_budget(cfg):
        cfg, choice = spend_budget(net, cfg)
    small = steps.decompose(net, cfg)
    errors = norton.layer_nmse(net, small)
    steps.calibrate_(small, cfg)
    outputs = steps.output_errors(net, small, cfg)
    rows = layer_rows(net, small, errors, outputs)

    before, after = norton.complexity(net), norton.complexity(small)
    metrics = {**opening.inherited(origin), "nmse": norton.nmse(net, small), "macs": after.macs, "params": after.params}
    if choice:
        metrics["budget"] = choice.summary()
    record = lineage_record("decompose", cfg, ("rank", "decomposition", "calibration"))
    folder = program.open_folder(asked)  # only now: bad input must not leave a folder behind
    norton.save(small, folder / "model.pt", metrics=metrics, lineage=[*origin["lineage"], record])
    write_json(
        folder / "metrics.json",
        {
            **metrics,
            "nmse_by_layer": errors,
            **({"output_error_by_layer": outputs} if outputs else {}),
            **({"choice": choice.as_dict()} if choice else {}),
        },
    )
    tables.write_table(folder / "table.md", rows)
    panels = {
        "output error" if outputs else "NMSE": outputs or errors,
        "MACs after": {name: after.by_layer[name].macs for name in errors},
    }
    pictures.layer_picture(folder / "picture.png", panels, f"{type(net).__name__}, {setting}")

    if choice:
        tables.print_table(choice.rows(), f"ranks for {setting}")
        print(choice.sentence())
    tables.print_table(rows, f"{type(net).__name__} decomposed at {setting}")
    total = {"": "network", "NMSE": f"{metrics['nmse']:.4f}", **cost_row(after, before)}
    tables.print_table([total])
    print(f"written to {folder}/: model.pt, config.yaml, metrics.json, table.md, picture.png")
    print(f"next: {evaluation(net, folder / 'model.pt')}")
