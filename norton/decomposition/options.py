"""How a network is decomposed, apart from the ranks, as one validated object that Python and the configs both fill."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from norton.common.checks import check_type, is_whole_number
from norton.common.errors import InputError
from norton.decomposition.methods import DECOMPOSITIONS

OBJECTIVES = ("auto", "weights", "outputs")


@dataclass(frozen=True)
class DecomposeOptions:
    """The arguments of `norton.decompose` that say how, named as there; the config group `decomposition`.

    objective: `auto` is `outputs` where there are images, and `weights` where there are none.  options: the method's
    own, such as `starts` of `cp`.

    Raises InputError for an unknown method or objective, a seed that is no whole number, and an option that the method
    has not.
    """

    method: str = "cp"
    skip: Iterable[str] | None = None
    seed: int = 0
    objective: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_type("options", self.options, Mapping)
        if self.skip is not None:
            check_type("skip", self.skip, Iterable)
        known = method_options(self.method)
        if unknown := sorted(set(self.options) - set(known)):
            has = ", ".join(known) or "none"
            raise InputError(f"decomposition {self.method!r} has no option {', '.join(unknown)}; it has {has}")
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        if not is_whole_number(self.seed):
            raise InputError(f"seed is {self.seed!r}; it must be a whole number")

    def fits_outputs(self, images: Any) -> bool:
        """Whether layers are fitted to outputs, given these calibration images, or None."""
        return self.objective != "weights" and images is not None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `norton.decompose` that say the same."""
        own = {"method": self.method, "skip": self.skip, "seed": self.seed, "objective": self.objective}
        return {**own, **self.options}


def method_options(method: str) -> dict[str, Any]:
    """Option of a method → its default.  Raises InputError for an unknown method."""
    parameters = inspect.signature(DECOMPOSITIONS[method].from_conv).parameters.values()
    return {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in ("name", "seed")}
