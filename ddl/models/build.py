"""Build a Model from a name (or a user's object) and the data's fields: a network with matching loss and metrics.

The networks are defined in the zoo's files; ``build`` is the only function that train calls."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ddl.errors import ConfigError, DdlError
from ddl.models.adversarial import gan
from ddl.models.blueprint import Blueprint, FieldLike, Problem, default_loss, suited
from ddl.models.layers import layers
from ddl.models.model import Loss, Model, Supervised
from ddl.models.sequence import gru, lstm, rnn, text
from ddl.models.transformer import transformer
from ddl.models.zoo import autoencoder, cnn, linear, mlp
from ddl.nn import Dropout, Embedding, Layer, Reshape, Residual, Sequential
from ddl.nn.context import Context
from ddl.nn.losses import LOSSES, BinaryCrossEntropy, CrossEntropy
from ddl.nn.metric import METRICS, BitsPerByte, Metric, OfChoices, OfFunction, Perplexity
from ddl.registry import adapt, adapter_of, instantiate, resolve
from ddl.wording import listed

MODELS = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "text": text,
    "transformer": transformer,
    "autoencoder": autoencoder,
    "gan": gan,
    "layers": layers,
}


# Networks of other frameworks: base class -> what makes a Model of (network, loss, metrics).
FOREIGN = {"torch.nn.modules.module.Module": "ddl.torch:Model"}
# Frameworks whose networks draw their initial values when they are made: module -> the function that seeds these draws.
SEEDS = {"torch": "torch:manual_seed"}

AUTO_DROPOUT = 0.5  # of the MLP that "auto" chooses
EMBEDDING = ("auto", "linear", "mlp")  # models that take the field "categories" of a table
OF_MEASUREMENTS = ("auto", "linear", "mlp", "cnn", "autoencoder", "gan")  # whole numbers in "x" are no tokens to these


def build(
    model: Any,
    fields: Mapping[str, FieldLike],
    loss: str | Loss | None = None,
    metrics: Sequence[str | Metric] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    suggested: str | None = None,
) -> Model:
    """The Model for data with these fields.

    model: a name of the zoo, or "auto" for the one that suits the samples; a user's "package.module:Name"; or an
    object: a Model, a network (Layer), or a function (problem, **options) that makes one of these or a Blueprint.
    loss, metrics: None chooses by the model and the targets: cross-entropy and accuracy for whole numbers, MSE and R2
    for values. options: the builder's arguments, and ``classes`` and ``vocabulary`` if the data does not determine
    them, and ``loss``, a table of options of the loss. seed: of the initial values that another framework draws.
    suggested: the loss for the kind of the targets if neither ``loss`` nor the model names one. Raises ConfigError, in
    one line, for an incompatible combination."""
    settings = dict(options or {})
    if isinstance(model, str) and model == "auto" and "x" in fields:
        model = suited(fields)
        if model == "mlp":  # small tables are the rule, which a network without dropout learns by heart
            settings.setdefault("dropout", AUTO_DROPOUT)
    of_loss = settings.pop("loss", {})
    name = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
    found = resolve(model, MODELS, "model.name") if isinstance(model, str) else model
    takes = set(inspect.signature(found).parameters) if callable(found) else set()
    known = {key: settings.pop(key, None) for key in ("classes", "vocabulary") if key not in takes}
    problem = _problem(fields, loss or suggested, known.get("classes"), known.get("vocabulary"))
    for framework in SEEDS.keys() & sys.modules.keys() if isinstance(model, str) else ():
        resolve(SEEDS[framework], {}, "seed")(seed)
    made = _made(found, name, problem, settings)
    foreign = adapter_of(made, FOREIGN)
    if foreign is not None:
        if "y" not in fields:
            raise ConfigError(f"model {name!r} needs targets, and the data has none (data.targets)")
        for_y: str | Loss = loss or suggested or default_loss(fields["y"])
        adapted: Model = foreign(made, for_y, _default_metrics(for_y, fields["y"]) if metrics is None else metrics)
        return adapted
    if _is_model(made):
        if loss is not None or metrics is not None:
            raise ConfigError(f"model {name!r} brings its own loss and metrics: leave model.loss and model.metrics out")
        return adapt(made, Model)
    blueprint = made if isinstance(made, Blueprint) else Blueprint(made)
    if not _is_layer(blueprint.network):
        raise ConfigError(f"model {name!r} is a {type(blueprint.network).__name__}, neither a Model nor a network")
    chosen = loss or blueprint.loss or suggested
    return _supervised(replace(blueprint, loss=chosen), problem, name, metrics, of_loss)


def _made(found: Any, name: str, problem: Problem, options: Mapping[str, Any]) -> Any:
    """The builder's result, or the object itself if it needs no building."""
    is_made = _is_model(found) or _is_layer(found) or isinstance(found, Blueprint) or adapter_of(found, FOREIGN)
    if not inspect.isclass(found) and is_made:
        if options:
            raise ConfigError(f"model {name!r} is an object and takes no options, got {listed(sorted(options), 'and')}")
        return found
    if not callable(found):
        raise ConfigError(f"model {name!r} is a {type(found).__name__}, neither a Model, a network nor a builder")
    first = next(iter(inspect.signature(found).parameters), "")
    given: Mapping[str, Any] = {"problem": problem, "fields": problem.fields}
    return instantiate(found, options, f"model {name!r}", *([given[first]] if first in given else []))


def takes_measurements(model: Any) -> bool:
    """Whether whole numbers in "x" are measurements to ``model``, by name or as an object, and not tokens.

    Of a network the first layer that looks at the values says so; False where the user wrote that layer."""
    if isinstance(model, str):
        return model in OF_MEASUREMENTS
    first = next((layer for layer in _parts(model) if not isinstance(layer, _OF_SHAPE)), None)
    return type(first).__module__.startswith("ddl.nn.") and not isinstance(first, Embedding)


_OF_SHAPE = (Reshape, Dropout)


def _parts(network: Any) -> Iterator[Any]:
    """The layers of a network in their order."""
    if isinstance(network, Sequential | Residual):
        within = network.layers.values() if isinstance(network, Sequential) else [network.body]
        for layer in within:
            yield from _parts(layer)
    else:
        yield network


def _is_model(thing: Any) -> bool:
    return not inspect.isclass(thing) and callable(getattr(thing, "loss_and_gradients", None))


def _is_layer(thing: Any) -> bool:
    return not inspect.isclass(thing) and isinstance(thing, Layer)


def _problem(
    fields: Mapping[str, FieldLike], loss: str | Loss | None, classes: int | None, vocabulary: int | None
) -> Problem:
    if "x" not in fields:
        raise ConfigError(f"the fields of the data are {listed(sorted(fields), 'and')}; a model needs one called 'x'")
    x = fields["x"]
    if vocabulary is None and x.dtype.kind in "iu":
        vocabulary = x.size or (256 if x.dtype.itemsize == 1 else None)
    return Problem(tuple(x.shape), vocabulary, fields, _name_of(loss) or loss, classes)


def _supervised(
    blueprint: Blueprint,
    problem: Problem,
    name: str,
    metrics: Sequence[str | Metric] | None,
    of_loss: Mapping[str, Any],
) -> Model:
    target = problem.fields.get(blueprint.target)
    if target is None:
        raise ConfigError(f"model {name!r} needs targets, and the data has none (data.targets)")
    chosen = blueprint.loss or default_loss(target)
    of_metrics = metrics if metrics is not None else blueprint.metrics
    if of_metrics is None:
        of_metrics = _default_metrics(chosen, target)
    made_loss = (
        instantiate(resolve(chosen, LOSSES, "model.loss"), of_loss, f"loss {chosen!r}")
        if isinstance(chosen, str)
        else chosen
    )
    made_metrics = [_fitting(_metric(metric), made_loss) for metric in of_metrics]
    precision = np.promote_types(target.dtype, np.float32).str if target.dtype.kind == "f" else "float32"
    model = Supervised(blueprint.network, made_loss, problem.shape, made_metrics, blueprint.target, precision=precision)
    _check_sizes(model, name)
    output, wanted = model.spec.output, problem.outputs if blueprint.target == "y" else tuple(target.shape)
    ours = _name_of(chosen)
    if ours and output != wanted:
        raise ConfigError(
            f"model {name!r} gives outputs of shape {output}, but loss {ours!r} with these targets needs {wanted}"
        )
    _try_out(model, target)
    return model


def _check_sizes(model: Supervised, name: str) -> None:
    """Raises ConfigError for options that give parameters of invalid shape; layers report all other errors."""
    try:
        shapes = {parameter: shape for parameter, (shape, _) in model.params.items()}
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ConfigError(f"model {name!r} cannot be built with these options: {error}") from error
    for parameter, shape in shapes.items():
        if any(length < 1 for length in shape):
            raise ConfigError(f"model {name!r}: {parameter} would have the shape {shape}: its options leave no room")


def _try_out(model: Supervised, target: FieldLike) -> None:
    """Pass one row of zeros through ddl's own losses and metrics, so that a mismatch fails here, in one
    line, and not after the first epoch. Raises ConfigError."""
    outputs = np.zeros((1, *model.spec.output), np.float32)
    targets = np.zeros((1, *target.shape), target.dtype)
    shapes = f"outputs of shape {outputs.shape[1:]} and targets of shape {targets.shape[1:]}"
    if type(model.loss) in LOSSES.values():
        context = Context(segments=[slice(0, 1)], shards=[0])
        _tried(lambda: model.loss.forward(outputs, targets, context), "the loss", shapes)
    for metric in model.metrics:
        if type(metric).__module__ == Metric.__module__:
            _tried(lambda m=metric: m.sums(outputs, targets, 0.0), f"metric {metric.name!r}", shapes)  # type: ignore[misc]


def _tried(action: Callable[[], object], what: str, shapes: str) -> None:
    try:
        action()
    except DdlError as error:
        raise ConfigError(str(error)) from error
    except (ValueError, IndexError, TypeError) as error:
        raise ConfigError(f"{what} does not fit {shapes}") from error


def _fitting(metric: Metric, loss: Loss) -> Metric:
    """Perplexity and bits per byte are computed from the loss if it is a plain cross-entropy; with binary cross-entropy
    each label is a separate decision."""
    if isinstance(metric, OfChoices) and isinstance(loss, BinaryCrossEntropy):
        return replace(metric, by_label=True)
    if isinstance(metric, (Perplexity, BitsPerByte)):
        if isinstance(loss, CrossEntropy):
            return replace(metric, of_outputs=bool(loss.label_smoothing or loss.class_weights))
        if type(loss) in LOSSES.values():
            raise ConfigError(f"metric {metric.name!r} is of a cross-entropy, the loss is {type(loss).__name__}")
    return metric


def _name_of(loss: str | Loss | None) -> str | None:
    """The name of one of ddl's losses, given by name or as an object; None for the user's own."""
    if isinstance(loss, str):
        return loss if loss in LOSSES else None
    return next((name for name, made in LOSSES.items() if type(loss) is made), None)


def _default_metrics(loss: str | Loss, target: FieldLike) -> list[str]:
    loss = _name_of(loss) or loss
    if loss in ("cross_entropy", "binary_cross_entropy"):
        return ["accuracy"]
    return ["rmse", "r2"] if loss in ("mse", "mae", "huber") and target.dtype.kind == "f" else []


def _metric(metric: str | Metric | Callable[[Any, Any], Any]) -> Metric:
    found: Any = resolve(metric, METRICS, "model.metrics") if isinstance(metric, str) else metric
    if callable(found) and not inspect.isclass(found) and _takes_outputs(found):
        return OfFunction(found)
    is_maker = callable(found) and (isinstance(metric, str) or inspect.isclass(found))
    made: Metric = instantiate(found, {}, f"metric {metric!r}") if is_maker else found
    return made


def _takes_outputs(function: Callable[..., Any]) -> bool:
    """Whether it is a plain function of (outputs, targets), neither a Metric nor what makes one."""
    if hasattr(function, "sums"):
        return False
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True
