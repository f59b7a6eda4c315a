"""A checkpoint measured and held against what it claims."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn

from norton.checkpoints import verification
from norton.checkpoints.about_data import other_normalisation
from norton.checkpoints.claims import DECISIVE, Claim, claims_of_entry, claims_of_file, claims_of_name
from norton.checkpoints.files import read
from norton.checkpoints.published_names import parse_name, resembles_name
from norton.checkpoints.verification import Verdict
from norton.cli.opening import about_of, checkpoint_network, choose_data, open_data
from norton.cli.settings import plain
from norton.cli.steps import evaluate
from norton.common.errors import InputError
from norton.measure.counting import Complexity, complexity


@dataclass(frozen=True)
class Verification:
    """A checkpoint with what it claims and what was measured.

    last_step: of its lineage.  notes: where its name and its file disagree.  data, accuracy: None where the data could
    not be had, as the verdict says.
    """

    net: nn.Module
    cost: Complexity
    split: str
    last_step: str | None
    claims: dict[str, Claim]
    notes: list[str]
    verdict: Verdict
    data: Any = None
    accuracy: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "arch": self.net.arch,
            "data": self.data and self.data.name,
            "split": self.split,
            "last_step": self.last_step,
            **(self.accuracy or {}),
            "macs": self.cost.macs,
            "params": self.cost.params,
            "claims": self.claims,
            "notes": self.notes,
            "verdict": self.verdict.text,
            "verdict_code": self.verdict.code,
        }


def verify(cfg: DictConfig, entry: dict[str, Any] | None = None) -> Verification:
    """Measure `checkpoint=` on `data=` and judge what it claims; entry: of a registry, which claims too.

    With data=auto, on the data that the claim is about; where those cannot be had, the counts alone are judged.
    """
    content = read(cfg.checkpoint)
    told = {"rank": plain(cfg.rank), "compress_rate": plain(cfg.compress_rate)}
    net = checkpoint_network(content, cfg, **told).float()  # a file in half precision meets float32 images
    claimed, contradictions, notes, unread = collect_claims(cfg.checkpoint, content, net, entry)
    cost = complexity(net)
    measured: dict[str, Any] = {"macs": cost.macs, "params": cost.params}
    about = next((claim["data"] for claim in claimed.values() if "data" in claim), about_of(net, {"metrics": {}}))
    automatic = cfg.data.name == "auto"
    trained = content.get("lineage") or [{}]
    found = {"net": net, "cost": cost, "split": cfg.split, "last_step": trained[-1].get("step"), "claims": claimed}
    try:
        choose_data(cfg, net, about)
        data = open_data(cfg, net)
        accuracy = evaluate(net, cfg, data, cfg.split)
    except InputError as error:
        if not automatic:
            raise
        unread = "" if claimed.get("file", {}).keys() & set(DECISIVE) else unread  # which needs no name
        verdict = verification.judge(
            claimed, measured, contradictions=contradictions, missing="; ".join(filter(None, (unread, str(error))))
        )
        return Verification(**found, notes=notes, verdict=verdict)
    missing, about = unread, about or data.name
    from norton.training import other_test  # Lightning takes seconds to import; who evaluates has imported it

    other = other_test(net, data) or other_normalisation(net, data.normalisation)
    if cfg.split == "test" and not other:
        # Whoever claims an accuracy without saying on what means the data that the file is about.
        claimed = {source: {"data": about, **claim} for source, claim in claimed.items()}
        measured |= {**accuracy, "data": data.name}
    if cfg.split != "test" or data.name != about:
        missing = f"the claim is about {about}, test; this is {data.name}, {cfg.split}"
    elif other:
        missing = f"the claim is about other images: {other}"
    verdict = verification.judge(claimed, measured, contradictions=contradictions, missing=missing)
    return Verification(**found, data=data, accuracy=accuracy, notes=notes, verdict=verdict)


def collect_claims(
    path: str, content: dict[str, Any], net: nn.Module, entry: dict[str, Any] | None
) -> tuple[dict[str, Claim], list[str], list[str], str]:
    """Source → claim; what the name says wrongly of the network; notes for people; why the name cannot be read."""
    found, contradictions, unread = {"file": claims_of_file(content, path)}, [], ""
    try:
        name = parse_name(path)
    except InputError as error:
        name, unread = None, str(error) if resembles_name(path) else ""
    if name:
        contradictions = verification.find_contradictions(name, net)
        found["name"] = {"top1": name.top1} if contradictions else claims_of_name(name, net.num_classes)
    if entry:
        found["registry"] = claims_of_entry(entry)
    notes = [f"{said}; the file counts" for said in contradictions]
    if unread:
        notes.append(f"{unread}; the name is left out of account")
    if name and abs(found["file"].get("top1", name.top1) - name.top1) > verification.TOLERANCE:
        notes.append("the file and its name claim different accuracies; both are held against what is measured")
    return {source: claim for source, claim in found.items() if claim}, contradictions, notes, unread
