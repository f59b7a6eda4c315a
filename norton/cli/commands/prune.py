"""Prune the filters of a network, decomposed or not."""

from omegaconf import DictConfig

import norton
from norton.cli import pictures, program, tables
from norton.cli.chain import begin
from norton.cli.hints import evaluation
from norton.cli.rows import cost_row, left_whole, whole_rows, width_rows
from norton.common.files import write_json
from norton.pruning import describe


@program.script("prune")
def main(cfg: DictConfig) -> None:
    chain, start, inherited = begin(cfg, "prune")
    net = start.net
    done = chain.take(start, "prune")
    small = done.net

    before, after = norton.complexity(net), norton.complexity(small)
    rows, left = width_rows(net, small), left_whole(net, cfg)
    filters = {row["layer"]: row["after"] for row in rows}
    metrics = {**inherited, "macs": after.macs, "params": after.params, "filters": filters}
    folder = program.open_folder(cfg)  # only now: bad input must not leave a folder behind
    norton.save(small, folder / "model.pt", metrics=metrics, lineage=done.lineage)
    write_json(folder / "metrics.json", {**metrics, "left_whole": left})
    tables.write_table(folder / "table.md", rows)
    earlier, now = ({"filters": {row["layer"]: row[when] for row in rows}} for when in ("before", "after"))
    title = f"{type(net).__name__} pruned by {describe(cfg.pruning)} at {cfg.compress_rate}"
    pictures.layer_picture(folder / "picture.png", now, title, earlier)

    tables.print_table(rows, title)
    if whole := whole_rows(left):
        tables.print_table(whole, "left whole, and why")
    tables.print_table([{"": "network", **cost_row(after, before)}])
    print(f"written to {folder}/: model.pt, config.yaml, metrics.json, table.md, picture.png")
    print(f"next: {evaluation(small, folder / 'model.pt')}")
