"""A network as parts in a row, and a stage: a run of these parts as a model.

cut.py decides where a stage begins, flow.py passes activations from one to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np

from ddl.arrays import Array, Layout, Views, generator
from ddl.errors import ConfigError
from ddl.models.model import Model, Sums, Supervised
from ddl.nn.context import Context
from ddl.nn.layer import Average, Chain, Initialiser, Layer, Shape, Spec, prefixed
from ddl.pipeline.cut import Cut, cheapest_cut, named_cut
from ddl.wording import counted

REPEATS = 3  # of a measured pass; the fastest counts, since others may have been interrupted


@dataclass(frozen=True)
class Part:
    """A layer of the network. name: for the user. scope: precedes its parameters' names, as in the whole network."""

    name: str
    layer: Layer
    scope: str
    spec: Spec

    @property
    def params(self) -> dict[str, tuple[Shape, Initialiser]]:
        return {_below(self.scope, name): value for name, value in self.spec.params.items()}

    @property
    def averages(self) -> dict[str, Average]:
        return {_below(self.scope, name): value for name, value in self.spec.averages.items()}

    def views(self, of: Views) -> Views:
        return of.at(self.scope) if self.scope else of


@dataclass(frozen=True)
class Joint:
    """What crosses from one part to the next: an activation (rows, *shape), perhaps the mask of padding (rows, *mask),
    and the state of the shards' generators if a layer has drawn from them. has_gradient: whether a stage may begin
    behind it."""

    shape: Shape
    dtype: np.dtype
    mask: Shape | None
    is_drawn: bool
    has_gradient: bool


@dataclass(frozen=True)
class Pipeline:
    """A model that is trained in ``stages`` stages. joints: behind each part. given: parts that stages begin with."""

    model: Supervised
    dtype: np.dtype
    parts: Sequence[Part]
    joints: Sequence[Joint]
    stages: int
    given: Sequence[str] = ()

    @cached_property
    def allowed(self) -> list[int]:
        """The numbers of the parts that a stage may begin with."""
        return [number for number in range(1, len(self.parts)) if self.joints[number - 1].has_gradient]

    def cut(self, batch: Mapping[str, Array], seed: int) -> Cut:
        """As named, or so that the slowest stage is as fast as possible. batch: a micro-batch, on which the parts are
        timed; only one part's parameters exist at a time."""
        if self.stages == 1:
            return (slice(0, len(self.parts)),)
        if self.given:
            return named_cut([part.name for part in self.parts], self.allowed, self.given)
        if len(self.allowed) == self.stages - 1:
            return cheapest_cut([1.0] * len(self.parts), self.allowed, self.stages)
        return cheapest_cut(self._costs(batch, seed), self.allowed, self.stages)

    def _costs(self, batch: Mapping[str, Array], seed: int) -> list[float]:
        """Seconds of each part's forward and backward pass."""
        found = [inf] * len(self.parts)
        context = Context(training=True, seed=seed)
        rows = len(batch["x"])
        with np.errstate(all="ignore"):
            for _ in range(REPEATS):
                x = _first(context, batch, [slice(0, rows)])
                for number, part in enumerate(self.parts):
                    params, grads = _values(part, self.dtype, random=True), _values(part, self.dtype)
                    began = time.perf_counter()
                    y, cache = part.layer.forward(part.views(params), x, context)
                    forward_s = time.perf_counter() - began
                    kept, dy = np.array(y), np.ones(y.shape, y.dtype)
                    began = time.perf_counter()
                    for _ in part.layer.backward(part.views(params), part.views(grads), cache, dy):
                        pass
                    found[number] = min(found[number], forward_s + time.perf_counter() - began)
                    x = kept
        return found

    def stage(self, cut: Cut, number: int) -> Stage:
        """A stage; the empty one for a rank that is idle, of a number below 0."""
        return Stage(self, cut, number)

    def first_cut(self) -> Cut:
        """Some cut, for ranks that hold nothing yet."""
        return cheapest_cut([1.0] * len(self.parts), self.allowed, self.stages)


def pipeline_of(
    model: Model, dtype: str, batch: Mapping[str, Array], stages: int, given: Sequence[str] = ()
) -> Pipeline:
    """The pipeline of ``model``. batch: a few samples, with which the parts are tried out.

    Raises ConfigError for a model or a network that cannot be cut into so many stages."""
    if not isinstance(model, Supervised):
        raise ConfigError(
            f"parallel.stages is {stages}, but this model is not a network of ddl's layers with one loss: only such a "
            "network is cut into stages (not a GAN, nor yet a torch.nn.Module)"
        )
    if given and len(given) != stages - 1:
        raise ConfigError(
            f"parallel.cut names {counted(len(given), 'layer')}, but {counted(stages, 'stage')} begin "
            f"with {stages - 1} of them, the first one aside"
        )
    parts = list(_parts(model.network, model.shape))
    made = Pipeline(model, np.dtype(dtype), parts, _joints(parts, np.dtype(dtype), batch), stages, given)
    cut = named_cut([part.name for part in parts], made.allowed, given) if given else made.first_cut()
    assert len(cut) == stages
    return made


def _parts(network: Layer, shape: Shape, name: str = "", scope: str = "") -> Iterator[Part]:
    """The layers of ``network`` in order; chains are taken apart."""
    if not isinstance(network, Chain):
        yield Part(name or type(network).__name__.lower(), network, scope, network.spec(shape))
        return
    for link in network.links():
        for part in _parts(link.layer, shape, _below(name, link.name), _below(scope, link.scope)):
            yield part
            shape = part.spec.output


def _below(scope: str, name: str) -> str:
    return ".".join(word for word in (scope, name) if word)


def _joints(parts: Sequence[Part], dtype: np.dtype, batch: Mapping[str, Array]) -> list[Joint]:
    """Pass a few samples through the parts, with parameters that are zero: one part's exist at a time."""
    context, joints, has_params = Context(training=True), [], False
    x = _first(context, batch, [slice(0, len(batch["x"]))])
    with np.errstate(all="ignore"):
        for part in parts:
            x, _ = part.layer.forward(part.views(_values(part, dtype)), x, context)
            has_params = has_params or bool(part.params)
            mask = None if context.mask is None else tuple(context.mask.shape[1:])
            drawn = "generators" in vars(context)
            joints.append(Joint(tuple(x.shape[1:]), x.dtype, mask, drawn, has_params and x.dtype.kind == "f"))
    return joints


def _first(context: Context, batch: Mapping[str, Array], segments: list[slice]) -> Array:
    context.begin(segments, [0] * len(segments), 0)
    context.data, context.categories = batch["x"], batch.get("categories")
    return batch["x"]


def _values(part: Part, dtype: np.dtype, random: bool = False) -> Views:
    """Arrays for the parameters and averages of one part: zero, or as training starts with them."""
    arrays = {name: np.zeros(shape, dtype) for name, (shape, _) in part.params.items()}
    arrays |= {name: np.zeros(one.shape, dtype) for name, one in part.averages.items()}
    if random:
        for name, (shape, initial) in part.params.items():
            arrays[name][...] = initial(shape, generator(0, name))
    return Views(arrays)


class Stage(Model):
    """A run of a network's parts as a model: names and initial values are those of the whole model.

    A parameter that two stages use belongs to the first; the other borrows it (``borrowed``) for each step.
    Its passes are ``forward`` and ``backward``; loss and metrics are those of the whole model."""

    def __init__(self, pipeline: Pipeline, cut: Cut, number: int):
        self.whole, self.number, self.stages = pipeline.model, number, len(cut)
        self.parts = list(pipeline.parts[cut[number]]) if number >= 0 else []
        before = [part for one in cut[: max(number, 0)] for part in pipeline.parts[one]]
        self.is_first, self.is_last = number == 0, number == len(cut) - 1
        owners = {name: place for place, one in reversed(list(enumerate(cut))) for part in pipeline.parts[one]
                  for name in part.params}  # fmt: skip
        owned_before = {name for part in before for name in part.params}
        every = {name: value for part in self.parts for name, value in part.params.items()}
        self._params = {name: value for name, value in every.items() if name not in owned_before}
        used_after = {
            (name, place)
            for place, one in enumerate(cut)
            if place > number
            for part in pipeline.parts[one]
            for name in part.params
        }
        self.borrowed = {name: owners[name] for name in every if name in owned_before}
        self.lent = {name: place for name, place in sorted(used_after) if name in self._params}
        self._averages = {name: value for part in self.parts for name, value in part.averages.items()}
        self.incoming = pipeline.joints[cut[number].start - 1] if number > 0 else None
        self.outgoing = pipeline.joints[cut[number].stop - 1] if 0 <= number < len(cut) - 1 else None
        self.of_borrowed = Layout.of({name: every[name][0] for name in self.borrowed}, pipeline.dtype)
        self._known: list[tuple[Views, Views, Views]] = []

    @property
    def params(self) -> Mapping[str, tuple[Shape, Initialiser]]:
        return self._params

    @property
    def averages(self) -> Mapping[str, Average]:
        return self._averages

    @property
    def synchronised(self) -> bool:
        return any(part.spec.synchronised for part in self.parts)

    @property
    def step_metrics(self) -> Sequence[str]:
        return self.whole.step_metrics

    def metric_values(self, sums: Sums, weight: float) -> dict[str, Any]:
        return self.whole.metric_values(sums, weight)

    def views(self, own: Views, others: Views) -> Views:
        """Arrays of the stage's own names and others (averages, borrowed ones) in one; cached for each pair."""
        if not others:
            return own
        for first, second, both in self._known:
            if first is own and second is others:
                return both
        self._known[:] = [*self._known[-3:], (own, others, Views({**own, **others}))]
        return self._known[-1][2]

    def forward(self, params: Views, x: Array, ctx: Context) -> tuple[Array, list[Any]]:
        caches = []
        for part in self.parts:
            x, cache = part.layer.forward(part.views(params), x, ctx)
            caches.append(cache)
        return x, caches

    def backward(self, params: Views, grads: Views, caches: list[Any], dy: Array, ctx: Context) -> Array | None:
        for part, cache in zip(reversed(self.parts), reversed(caches), strict=True):
            inner = part.layer.backward(part.views(params), part.views(grads), cache, dy)
            passed = prefixed(part.scope, inner) if part.scope else inner
            while True:
                try:
                    ctx.announce(next(passed))
                except StopIteration as end:
                    dy = end.value
                    break
            if dy is None:
                return None
        return dy

    def loss(
        self, outputs: Array, targets: Mapping[str, Array], ctx: Context
    ) -> tuple[float, float, dict[str, Any], Array]:
        """Loss, weight and metric sums of a batch, and the gradient of its outputs; on the last stage."""
        target = targets[self.whole.target]
        loss, weight, kept = self.whole.loss.forward(outputs, target, ctx)
        return loss, weight, self.whole.measured(outputs, target, loss, ctx.training), self.whole.loss.backward(kept)
