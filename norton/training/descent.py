"""The descent of a compressed network towards the answers of the dense one, on unlabelled images (Hinton et al. 2015).

All factors, weights and scales move together, on images that are mixed of few (`norton.training.mixing`).  The
statistics of BatchNorm stay, and nothing is drawn in dropout: the network is trained as it will be used.  How far both
are apart is measured again and again on images that nothing else sees, and the nearest network counts.
"""

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from norton.calibration.batches import Images, batches_of, count_of, taken_by
from norton.calibration.precision import as_float32, images_for
from norton.common.checks import check_number, check_whole_number
from norton.common.errors import InputError, first_line, warn
from norton.common.files import write_whole
from norton.graph.copies import copied
from norton.graph.inputs import Inputs
from norton.graph.layers import set_form_
from norton.training.answers import Answers, Kind
from norton.training.layout import Layout
from norton.training.mixing import Mixing

CHECKS = 10  # times at least that the distance is measured
BETWEEN = 30.0  # seconds at most between two of them
WARM_UP = 0.05  # of the descent, in which the learning rate rises
GRADIENT = 1.0  # the norm at which gradients are clipped


@dataclass(frozen=True)
class Refining:
    """How a network is refined.

    minutes, steps: where it ends, the first of both that is reached; None: no limit of that kind.  With steps alone it
    gives the same each time.  learning_rate: of AdamW, falling along a cosine.  batch_size: images of a step.
    temperature: of soft targets; high, so that what the dense network thinks of all classes counts.  outputs: what the
    network gives, see `Answers`.  Raises InputError for settings that are none, and for no limit at all.
    """

    minutes: float | None = 5.0
    steps: int | None = None
    learning_rate: float = 3e-3
    batch_size: int = 64
    temperature: float = 4.0
    outputs: Kind = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise InputError("minutes and steps are both None; give one of them, such as minutes=5")
        if self.minutes is not None:
            check_number("minutes", self.minutes, above=0)
        if self.steps is not None:
            check_whole_number("steps", self.steps, 1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("temperature", self.temperature, above=0)
        check_whole_number("batch_size", self.batch_size, 2)
        check_whole_number("seed", self.seed, 0)


class Clock:
    """How much of the minutes or steps that are allowed is gone, over all sittings."""

    def __init__(self, minutes: float | None, steps: int | None):
        self.seconds, self.steps = None if minutes is None else 60 * minutes, steps
        self.steps_gone, self._before, self._start = 0, 0.0, time.monotonic()

    @property
    def seconds_gone(self) -> float:
        return self._before + time.monotonic() - self._start

    @property
    def part(self) -> float:
        """0 at the start, 1 at the end."""
        parts = [self.seconds and self.seconds_gone / self.seconds, self.steps and self.steps_gone / self.steps]
        return min(1.0, max(part for part in parts if part is not None))

    def go_on_from(self, seconds: float, steps: int) -> None:
        self._before, self.steps_gone = seconds, steps


class Descent:
    """A refinement on its way: `best` are the weights nearest to the dense network so far, `nearest` their distance."""

    def __init__(
        self,
        net: nn.Module,
        dense: nn.Module,
        images: Images,
        fresh: Images,
        how: Refining,
        names: Sequence[str],
        clock: Clock,
    ):
        self.how, self.clock = how, clock
        self.settings = asdict(how) | {"moving": list(names)}
        self.student, self.teacher = (set_form_(copied(as_float32(one)), "fast").eval() for one in (net, dense))
        self.teacher.requires_grad_(False)
        self.device = next(self.student.parameters()).device
        self.layout = Layout([self.student, self.teacher], modes=(False,))
        self.fresh = [self.laid_out(batch) for batch in batches_of(images_for(net, fresh), 128, self.device)]
        with torch.no_grad(), taken_by(dense, self.fresh[0]):
            self.wanted = [batch.call(self.teacher) for batch in self.fresh]
        self.answers = Answers(self.wanted, how.outputs, how.temperature)
        self.mixing = Mixing(images_for(net, images), how.batch_size, how.seed)
        moving = dict(self.student.named_parameters())
        self.moving = [moving[name] for name in names]
        for name, parameter in moving.items():
            parameter.requires_grad_(name in set(names))
        self.optimizer = torch.optim.AdamW(self.moving or [torch.zeros(1)], lr=how.learning_rate, weight_decay=0.0)
        self.before = self.nearest = self.distance()
        self.best = self._weights()
        self._checked = 0.0, clock.seconds_gone  # the part, and the time, of the last measurement

    def laid_out(self, batch: Inputs) -> Inputs:
        return batch.to(self.device).map(lambda x: self.layout(x) if x.is_floating_point() else x)

    def go(self, state: Path | None, progress: bool) -> None:
        """To the end, or to where nothing can be gained."""
        if not self.moving or not self.before > 0:
            return
        with _bar(progress) as show:
            while self.clock.part < 1:
                if not self.step():
                    warn("refining diverged, and what was best before is taken; use a lower learning_rate")
                    return
                if self.is_due():
                    self.check()
                    if state is not None:
                        self.save(state)
                show(self.clock.part, self.nearest)
            self.check()

    def step(self) -> bool:
        """One step of descent; False where the loss is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.learning_rate * _schedule(self.clock.part)
        batch = self.laid_out(self.mixing())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._in_bfloat16()):
            with torch.no_grad():
                wanted = batch.call(self.teacher)
            output = batch.call(self.student)
        loss = self.answers.distance(output, wanted)
        self.clock.steps_gone += 1
        if not loss.isfinite():
            return False
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.moving, GRADIENT)
        self.optimizer.step()
        return True

    @torch.no_grad()
    def distance(self) -> float:
        """From the dense network, on images that nothing was trained on."""
        total = sum(
            batch.count * self.answers.distance(batch.call(self.student), wanted).item()
            for batch, wanted in zip(self.fresh, self.wanted, strict=True)
        )
        return total / count_of(self.fresh)

    def is_due(self) -> bool:
        part, seconds = self._checked
        return self.clock.part - part >= 1 / CHECKS - 1e-9 or (
            self.clock.seconds is not None and self.clock.seconds_gone - seconds >= BETWEEN
        )

    def check(self) -> None:
        """Measure, and keep what is nearer than anything before."""
        if (distance := self.distance()) < self.nearest:
            self.nearest, self.best = distance, self._weights()
        self._checked = self.clock.part, self.clock.seconds_gone

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(self._state(), buffer)
        write_whole(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Go on from a file of `save`.  One of other settings is left out, with a warning."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # whatever torch raises of a file that is not its own
            raise InputError(f"{path} cannot be read ({first_line(error)}); remove it to begin anew") from error
        if state["settings"] != self.settings or state["weights"].keys() != self.best.keys():
            warn(f"{path} is of a refinement with other settings; this one begins anew")
            return
        self.student.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mixing.load_state_dict(state["mixing"])
        self.best, self.nearest, self.before = state["best"], state["nearest"], state["before"]
        self.clock.go_on_from(state["seconds"], state["steps"])
        self._checked = self.clock.part, self.clock.seconds_gone

    def _state(self) -> Mapping[str, Any]:
        return {
            "settings": self.settings,
            "weights": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mixing": self.mixing.state_dict(),
            "best": self.best,
            "nearest": self.nearest,
            "before": self.before,
            "seconds": self.clock.seconds_gone,
            "steps": self.clock.steps_gone,
        }

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.student.state_dict().items()}

    def _in_bfloat16(self) -> bool:
        return self.moving[0].dtype == torch.float32 and has_bfloat16(self.device)


def _schedule(part: float) -> float:
    """The share of the learning rate: a short rise, then half a cosine."""
    return min(1.0, (part + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * part)) / 2


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by instructions of its own, which makes steps faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(ask is not None and ask() for ask in known)


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[float, float], None]]:
    """A bar that takes the part that is done, and the distance so far."""
    text = TextColumn("refine, distance {task.fields[distance]}")
    with Progress(
        text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), transient=True, disable=not shown
    ) as bar:
        task = bar.add_task("refine", total=1.0, distance="")
        yield lambda part, distance: bar.update(task, completed=part, distance=f"{distance:.3g}")
