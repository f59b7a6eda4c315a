"""Decompose the convolutions of a network."""

from omegaconf import DictConfig

import norton
from norton.cli import pictures, program, steps, tables
from norton.cli.chain import begin
from norton.cli.hints import evaluation
from norton.cli.rows import cost_row, layer_rows
from norton.cli.settings import has_budget, setting_text
from norton.common.files import write_json


@program.script("decompose")
def main(cfg: DictConfig) -> None:
    chain, start, inherited = begin(cfg, "decompose")
    net = start.net
    setting, choice = setting_text(cfg), chain.spend(start) if has_budget(cfg) else None
    done = chain.take(start, "decompose")
    if not done.errors:
        raise norton.InputError(f"{setting} decomposes no layer of this {type(net).__name__}; give some of them a rank")
    small, errors = done.net, done.errors
    outputs = steps.output_errors(net, small, chain.cfg, chain.data)
    before, after = norton.complexity(net), norton.complexity(small)
    rows = layer_rows(small, before, after, errors, outputs)
    metrics = {**inherited, "nmse": done.nmse, "macs": after.macs, "params": after.params}
    if choice:
        metrics["budget"] = choice.summary()
    folder = program.open_folder(cfg)  # only now: bad input must not leave a folder behind
    norton.save(small, folder / "model.pt", metrics=metrics, lineage=done.lineage)
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
        "MACs (millions)": {name: after.by_layer[name].macs / 1e6 for name in errors},
    }
    earlier = {"MACs (millions)": {name: before.by_layer[name].macs / 1e6 for name in errors}}
    title = f"{type(net).__name__} decomposed at {setting}"
    pictures.layer_picture(folder / "picture.png", panels, title, earlier)

    if choice:
        tables.print_table(choice.rows(), f"ranks for {setting}")
        print(choice.sentence())
    tables.print_table(rows, title)
    total = {"": "network", "NMSE": f"{done.nmse:.4f}", **cost_row(after, before)}
    tables.print_table([total])
    print(f"written to {folder}/: model.pt, config.yaml, metrics.json, table.md, picture.png")
    print(f"next: {evaluation(small, folder / 'model.pt')}")
