"""The search for the fastest form of each decomposed layer, by timing layers alone and whole networks."""

import copy
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import nn

from norton.common.errors import first_line, warn
from norton.deployment.assembling import assemble, input_shapes
from norton.deployment.exact_forms import DENSE, FUSED, exact_forms
from norton.deployment.folding import Folded
from norton.deployment.onednn import pack_
from norton.deployment.record import Deployment, format_name
from norton.graph.inputs import Example, Inputs, inputs_of
from norton.measure.latency import forward_seconds, latencies

HOPELESS = 2  # forms that take so many times the best one are not timed further
NEAR = 1.3  # times the best form of a layer alone: what is tried in the whole network too
WON = 0.98  # of the time: less than that counts as faster
MOST_TURNS = 40  # times at most that a layer is timed in each form

Forms = dict[tuple, str]  # layers of one geometry and input → form
Trial = tuple[Forms, bool]  # and whether the memory format is channels-last


@dataclass(frozen=True)
class SearchBudget:
    """How long to look for the fastest forms.

    layer_seconds: for which each layer is timed in each form.  trials: changes of one choice that are tried in the
    whole network, at most.  patience: seconds after which no more of them are tried.
    """

    layer_seconds: float = 0.03
    trials: int = 8
    patience: float = 45


DEFAULT_BUDGET = SearchBudget()


class FormSearch:
    """Times of forms and of whole networks on one example."""

    def __init__(
        self, folded: Folded, example: Example | Inputs, repeats: int, budget: SearchBudget | None, bar: Progress
    ):
        self.folded, self.repeats, self.bar = folded, repeats, bar
        self.inputs = example if isinstance(example, Inputs) else inputs_of(example)
        self.budget = budget or DEFAULT_BUDGET
        self.formats = (True, False) if folded.channels_last else (False,)
        self.layers = folded.decomposed
        self.shapes = input_shapes(folded.net, self.inputs, self.layers)
        self.groups: dict[tuple, list[str]] = {}  # layers of the same geometry and input are one choice
        for name in self.layers:
            if name in self.shapes:
                self.groups.setdefault(self._key(name), []).append(name)
        self.alone: dict[tuple, dict[tuple[str, bool], float]] = {}
        self.networks: dict[str, float] = {}

    def _key(self, name: str) -> tuple:
        layer = self.layers[name]
        parts = tuple(map(str, layer.feature))  # stride, padding and dilation too
        return type(layer), layer.rank, parts, layer.bias is not None, self.shapes[name]

    def choose(self, known: Mapping[str, str]) -> Deployment:
        start = time.perf_counter()
        for key, names in self.bar.track(self.groups.items(), description="time layers"):
            self.alone[key] = self.time_forms(exact_forms(self.layers[names[0]]), key[-1])
        starts: dict[str, Trial] = {}
        for channels_last in self.formats:
            if best := {key: self._ranked(key, channels_last)[0] for key in self.groups}:
                starts[f"best alone, {format_name(channels_last)}"] = best, channels_last
            starts[f"{DENSE}, {format_name(channels_last)}"] = dict.fromkeys(self.groups, DENSE), channels_last
        starts |= self._uniform()
        task = self.bar.add_task("time networks", total=2 + self.budget.trials)
        times = self._compare(starts)
        self.bar.advance(task)
        self.networks |= times
        chosen, channels_last = starts[min(times, key=times.__getitem__)]
        dense_format = starts[min((name for name in starts if name.startswith(DENSE)), key=times.__getitem__)][1]
        for key, form in self._neighbours(chosen, channels_last):
            if time.perf_counter() - start > self.budget.patience:
                break
            trial = chosen | {key: form}
            pair = self._compare({"before": (chosen, channels_last), "after": (trial, channels_last)})
            self.networks[f"{form}: {', '.join(self.groups[key])}"] = pair["after"]
            if pair["after"] < WON * pair["before"]:
                chosen = trial
            self.bar.advance(task)
        chosen, channels_last = self._final(chosen, channels_last, dense_format)
        self.bar.update(task, completed=2 + self.budget.trials)
        return Deployment(
            forms=self._by_layer(chosen),
            channels_last=channels_last,
            layers={
                name: {f"{form}, {format_name(last)}": ms for (form, last), ms in self.alone[key].items()}
                for key, names in self.groups.items()
                for name in names
            },
            networks=self.networks,
            **known,
        )

    def time_forms(self, candidates: Mapping[str, nn.Module], shape: tuple[int, ...]) -> dict[tuple[str, bool], float]:
        """(form, channels-last) → milliseconds, the least of several turns, for what disturbs only adds; hopeless forms
        have few turns.
        """
        given = [*self.inputs.tensors, *(x for form in candidates.values() for x in form.parameters())]
        like = next(x for x in given if x.is_floating_point())
        x = torch.randn(shape, device=like.device).to(like.dtype)
        calls = {}
        for channels_last in self.formats:
            layout = torch.channels_last if channels_last and x.ndim == 4 else torch.contiguous_format
            for name, form in candidates.items():
                form = copy.deepcopy(form).to(memory_format=layout)
                calls[name, channels_last] = pack_(form) if channels_last else form, x.contiguous(memory_format=layout)
        for key in list(calls):  # what only the first pass makes does not count
            try:
                forward_seconds(*calls[key])
            except Exception as error:  # whatever triton and the compiler below it raise on a GPU that we have not seen
                if key[0] != FUSED:
                    raise
                warn(f"{FUSED} is left out, it fails here: {first_line(error)}")
                del calls[key]
        found = {key: min(forward_seconds(*call) for _ in range(2)) for key, call in calls.items()}
        near = [key for key in calls if found[key] <= HOPELESS * min(found.values())]
        for _ in range(min(MOST_TURNS, 1 + int(self.budget.layer_seconds / min(found.values())))):
            for key in near:
                found[key] = min(found[key], forward_seconds(*calls[key]))
        return {key: 1000 * seconds for key, seconds in found.items()}

    def _uniform(self) -> dict[str, Trial]:
        """Name → one form for all layers that have it, in the format in which the layers alone are faster.

        Such a choice does not hang on whether each layer was timed undisturbed.
        """
        sums = {
            last: sum(self.alone[key][self._ranked(key, last)[0], last] for key in self.groups) for last in self.formats
        }
        last = min(sums, key=sums.__getitem__)
        names = dict.fromkeys(name for key in self.groups for name, _ in self.alone[key] if name != DENSE)
        return {
            f"{name}, {format_name(last)}": (
                {key: name if (name, last) in self.alone[key] else DENSE for key in self.groups},
                last,
            )
            for name in names
        }

    def _ranked(self, key: tuple, channels_last: bool) -> list[str]:
        own = {form: ms for (form, last), ms in self.alone[key].items() if last == channels_last}
        return sorted(own, key=own.__getitem__)

    def _neighbours(self, chosen: Forms, channels_last: bool) -> list[tuple[tuple, str]]:
        """Changes of one choice that may win, those first that are nearest in time alone."""
        near = []
        for key, names in self.groups.items():
            own = self.alone[key]
            for form in self._ranked(key, channels_last):
                lost = own[form, channels_last] - own[chosen[key], channels_last]
                if form != chosen[key] and own[form, channels_last] <= NEAR * own[chosen[key], channels_last]:
                    near.append((lost * len(names), key, form))
        return [(key, form) for _, key, form in sorted(near, key=operator.itemgetter(0))[: self.budget.trials]]

    def _final(self, chosen: Forms, channels_last: bool, dense_format: bool) -> Trial:
        """The choice, or all layers dense where it is not faster than that."""
        dense = dict.fromkeys(self.groups, DENSE)
        if chosen == dense:
            times = self._compare({"dense": (dense, dense_format)})
            self.networks |= {"chosen": times["dense"], "dense": times["dense"]}
            return dense, dense_format
        times = self._compare({"chosen": (chosen, channels_last), "dense": (dense, dense_format)}, 2 * self.repeats)
        if times["chosen"] < times["dense"]:
            self.networks |= times
            return chosen, channels_last
        self.networks |= {"chosen": times["dense"], "dense": times["dense"]}
        return dense, dense_format

    def _by_layer(self, chosen: Forms) -> dict[str, str]:
        return {name: chosen[key] for key, names in self.groups.items() for name in names}

    def _compare(self, tried: Mapping[str, Trial], repeats: int | None = None) -> dict[str, float]:
        """Name → milliseconds of the whole network, the lower quartile: what disturbs only adds."""
        nets = {name: assemble(self.folded, self._by_layer(of), last) for name, (of, last) in tried.items()}
        times = latencies(nets, self.inputs, repeats=repeats or self.repeats)
        return {name: time.quartiles[0] for name, time in times.items()}
