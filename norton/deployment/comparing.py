"""Networks that are timed against each other: all deployed, or all as they are."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.progress import track
from torch import Tensor, nn

from norton.common.errors import InputError, warn
from norton.deployment.deploying import deploy_by
from norton.deployment.record import Deployment
from norton.graph.copies import copied
from norton.measure.latency import ImageBatch, device_of

LATENCY_MODES = ("deployed", "eager")
shared_choices: dict[tuple[str, ...], Deployment] = {}  # what networks of equal shapes share while the process runs


def deploy_alike(
    nets: Mapping[str, nn.Module],
    batch: ImageBatch,
    mode: str = "deployed",
    *,
    repeats: int = 3,
    deploy: Callable[..., nn.Module] | None = None,
    progress: bool = False,
) -> dict[str, nn.Module]:
    """Networks to be timed against each other on a batch, on its device: all deployed for it, or all as they are.

    mode: one of `LATENCY_MODES`.  repeats: of what is tried in whole networks.  deploy: what does it, `deploy` by
    default; then networks of equal shapes share a choice while the process runs.  Where one of them cannot be deployed
    all stay as they are, and a `NortonWarning` says so, for what is timed in different modes does not compare.
    """
    check_latency_mode(mode)
    if mode == "eager":
        return dict(nets)
    one, found = deploy or _deploy_once, {}
    for name, net in track(nets.items(), "choose forms", transient=True, disable=not progress):
        try:
            found[name] = one(copied(net).to(device_of(batch)).eval(), batch, repeats=repeats)
        except InputError as error:
            warn(f"networks are timed as they are, not deployed; {name}: {error}")
            return dict(nets)
    return found


def check_latency_mode(mode: Any) -> None:
    """Raise InputError for an unknown way to time networks."""
    if mode not in LATENCY_MODES:
        raise InputError(f"latency is {mode!r}; choose {' or '.join(LATENCY_MODES)}")


def _deploy_once(net: nn.Module, example: Tensor, repeats: int) -> nn.Module:
    """`deploy`, measured once for networks of equal shapes."""
    deployed = deploy_by(net, example, lambda known: shared_choices.get(tuple(known.values())), repeats)
    choice = deployed.deployment
    shared_choices[choice.network, choice.example, choice.machine, choice.torch, choice.norton] = choice
    return deployed
