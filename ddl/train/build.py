"""From settings to objects: the one place where a job's configuration is read and becomes a task.

ddl/config checks the settings; the objects are defined in their own rooms."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np

from ddl.arrays import Layout
from ddl.collectives import Tuning
from ddl.collectives.allreduce import resolve_algorithm
from ddl.config import Job, OptimSettings
from ddl.data import (
    Field,
    Known,
    Mixup,
    Order,
    Source,
    Splits,
    auto_shards,
    can_normalise,
    class_weights,
    fingerprint,
    labels_of,
    make_transforms,
)
from ddl.errors import ConfigError
from ddl.fault import startup
from ddl.models.blueprint import suited
from ddl.models.model import Model
from ddl.optim import OPTIMIZERS, SGD, Groups, LearningRate, Momentum, Optimizer, Pruning, Rule, scaled_lr, schedule
from ddl.optim.local import Local
from ddl.pipeline import pipeline_of
from ddl.registry import resolve
from ddl.train.datasets import build_data
from ddl.train.initial import start_from
from ddl.train.saved import model_of
from ddl.train.targets import with_scaled_targets
from ddl.train.task import Task
from ddl.train.teacher import Answered, open_teacher
from ddl.wording import counted, instead, listed

LR, LR_OF_LINEAR = 2e-3, 2e-2  # optim.lr = "auto"; the loss of a linear model is convex
EPOCHS, MOST_EPOCHS, LEAST_STEPS = 20, 300, 600  # train.epochs = "auto"

# Dropout makes the outputs of a network vary, which values forgive less than classes do: with a learning rate of 0.002
# and 1,400 houses r2 on the test split was 0.80 with the dropout of 0.5 that "auto" has, and 0.98 with this. Fewer
# samples overfit: for 309 patients (diabetes) mean r2 was 0.29, and is 0.50 with weight decay (three splits).
MANY_SAMPLES, DROPOUT_OF_VALUES, DECAY_OF_FEW = 1000, 0.1, 0.2

# Settings of [optim] that are an optimizer's own, and the optimizers that have them.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("momentum", "nesterov"),
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps"),
    "nadam": ("beta1", "beta2", "eps"),
    "radam": ("beta1", "beta2", "eps"),
    "rmsprop": ("decay", "eps"),
    "adagrad": ("eps",),
    "lamb": ("beta1", "beta2", "eps"),
    "lars": ("momentum",),
}


def build_task(job: Job) -> Task:
    """The task of ``job``. Opens its data and makes its model; raises UserError for an impossible job."""
    startup.doing("opening its data")
    splits = build_data(job)
    options = model_options(job, splits)
    startup.doing("building its model")
    model = model_of(job, splits.train.fields, options, splits.target)
    model, splits, notes = with_scaled_targets(job, model, splits)
    knowledge = knowledge_of(job, splits, notes, options)
    order = order_of(job, len(splits.train), model)
    total_steps = steps_of(job, order)
    groups = build_groups(job, model, total_steps, weight_decay(job, splits))
    return assemble(
        job,
        splits,
        model=model,
        order=order,
        optimizer=groups,
        lr=learning_rate(job, total_steps, groups.lr),
        total_steps=total_steps,
        clip_norm=job.optim.clip_norm,
        normalise=normalisation(job, splits.train),
        augment=augmentations(job.data.augment, splits.train.fields, model),
        callbacks=callbacks(job.train.callbacks),
        knowledge=knowledge,
    )


def knowledge_of(
    job: Job, splits: Splits, notes: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was learned from the data before training, as JSON: a checkpoint keeps it, so that the model
    can be made, and new samples read, where the data are gone. notes: further lines for the banner. options: from
    ``model_options``, if they are known."""
    known = Known.of(splits.train, splits.names, splits.target).to_json()
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        "data": {
            **known,
            "notes": [*known["notes"], *notes],
            "fingerprint": fingerprint(splits.train),
        },
        "samples": {name: 0 if part is None else len(part) for name, part in parts.items()},
        "options": model_options(job, splits) if options is None else options,
    }


def normalisation(job: Job, train: Source) -> str:
    """The setting data.normalize, in which "auto" is decided by the samples."""
    chosen: str = job.data.normalize
    return chosen if chosen != "auto" else "feature" if can_normalise(train.fields["x"]) else "none"


def callbacks(given: Sequence[Any]) -> list[Any]:
    """Callbacks given as objects or as "package.module:Name"; classes are instantiated."""
    objects = [resolve(one, {}, "train.callbacks") if isinstance(one, str) else one for one in given]
    return [one() if inspect.isclass(one) else one for one in objects]


def augmentations(specs: Sequence[Any], fields: Mapping[str, Field], model: Model) -> list[Any]:
    """The transforms of training; mixup blends class numbers in the form that the model's loss takes."""
    made = make_transforms(specs, fields)
    return [
        replace(one, as_values=True) if model.targets_are_values and isinstance(one, Mixup) else one for one in made
    ]


def order_of(job: Job, samples: int, model: Model) -> Order:
    """The order of ``samples`` training samples."""
    batch, least = job.step_batch, max(model.samples_per_shard * job.micro_batches, 2)
    if job.comm.sync == "local" and batch > samples:
        most = max(samples // job.train.global_batch, 1)
        raise ConfigError(
            f"[comm] inner_steps is {job.comm.inner_steps}, so that a step takes {counted(batch, 'sample')}, and there "
            f"are {samples}: it can be at most {most}"
        )
    shards = auto_shards(batch, samples, least) if job.data.shards == "auto" else int(job.data.shards)
    return Order(samples, shards, batch, job.run.seed, job.data.shuffle)


def steps_of(job: Job, order: Order) -> int:
    """How many steps the job asks for. A small table needs more epochs than a large one to be learned."""
    if job.train.steps or job.train.epochs != "auto":
        return job.train.steps or int(job.train.epochs) * order.steps_per_epoch
    needed = -(-LEAST_STEPS // order.steps_per_epoch) if job.data.source == "files" else 0
    return min(max(EPOCHS, needed), MOST_EPOCHS) * order.steps_per_epoch


def _local(job: Job, inner: Groups, model: Model) -> Local:
    """The optimizer of ``comm.sync = "local"``."""
    if model.synchronised:
        raise ConfigError("comm.sync is local, but batch norm is synchronised: ranks do not meet between two sums")
    lr, momentum = job.comm.outer_lr, job.comm.outer_momentum
    outer = Momentum(lr=lr, momentum=momentum, nesterov=True) if momentum else SGD(lr=lr)
    return Local(inner, outer, job.comm.inner_steps)


def assemble(job: Job, splits: Splits, *, order: Order, knowledge: Mapping[str, Any], **objects: Any) -> Task:
    """A task made of objects and settings. objects: the Task's fields that are not plain settings."""
    resolve_algorithm(job.comm.algorithm)  # raises for an unknown name
    if job.comm.sync == "local":
        objects["optimizer"] = _local(job, objects["optimizer"], objects["model"])
    teacher, train = open_teacher(job, objects["model"], knowledge), splits.train
    if teacher is not None:
        objects["model"] = teacher.taught(objects["model"], job.model.teacher_temperature, job.model.teacher_alpha)
        objects["teacher_digest"] = teacher.digest
        if not objects["augment"]:
            train, teacher = Answered(train, teacher), None
    if job.optim.sharded == "on" and not objects["optimizer"].is_elementwise:
        raise ConfigError(
            'optim.sharded = "on", but the optimizer looks at whole layers: no rank can update a part alone'
        )
    model = objects["model"]
    if model.dtype not in (None, job.train.dtype):
        raise ConfigError(f"the model's parameters are {model.dtype}, but train.dtype is {job.train.dtype}")
    if model.on_host and job.comm.device == "gpu":
        raise ConfigError("comm.device is gpu, but the model computes on the CPU only")
    first = _first_samples(splits.train)
    model.check(first)
    pipeline = None
    if job.parallel.stages > 1:
        pipeline = pipeline_of(model, job.train.dtype, first, job.parallel.stages, job.parallel.cut)
        if objects["optimizer"].own is not None:
            raise ConfigError(
                f"parallel.stages is {job.parallel.stages}, but the optimizer keeps state beside its slots"
            )
    if model.synchronised and order.global_batch < 2 * job.micro_batches:
        raise ConfigError(
            "synchronised batch norm needs at least 2 samples at a time: use LayerNorm, a larger "
            "train.global_batch or a smaller train.accumulate"
        )
    samples = order.global_batch // (order.shards * job.micro_batches)
    least = model.samples_per_shard
    if samples < least and order.shards > 1:
        most = max(order.global_batch // (least * job.micro_batches), 1)
        raise ConfigError(
            f"batch norm by shards needs {least} samples of each shard at a time, here are {samples}: use "
            f"{model.synchronised_by}, data.shards = {most} or a larger train.global_batch"
        )
    return Task(
        train=train,
        teacher=teacher,
        validation=splits.validation,
        test=splits.test,
        order=order,
        dtype=job.train.dtype,
        seed=job.run.seed,
        parts=job.micro_batches,
        prefetch=job.data.prefetch,
        evaluate_rows=job.data.batch_eval,
        evaluate_every=job.train.evaluate_every,
        patience=job.train.patience,
        restore_best=job.restores_best,
        skip_limit=job.fault.skip_limit,
        check_every=job.fault.check_every,
        balance=job.train.balance == "auto",
        resume_schedule=job.optim.resume_schedule,
        algorithm=job.comm.algorithm,
        bucket_mib=job.comm.bucket_mib,
        overlap=job.comm.overlap,
        gpu=job.comm.gpu,
        wire=job.comm.wire,
        sharded=job.optim.sharded,
        tuning=Tuning.load(job.comm.tuning) if job.comm.tuning else None,
        pipeline=pipeline,
        settings={
            "shards": order.shards,
            "samples": order.samples,
            "global_batch": order.global_batch,
            "seed": order.seed,
            "shuffle": order.shuffle,
            "knowledge": knowledge,
            "metrics": list(objects["model"].step_metrics),
        },
        **{"initial": start_from(job, objects["model"]), **objects},
    )


def _first_samples(source: Source, count: int = 4) -> dict[str, np.ndarray]:
    """A batch of a few samples; afterwards the source holds nothing."""
    source.hold([range(min(count, len(source)))])
    batch = source.gather(np.arange(min(count, len(source))))
    source.hold([])
    return batch


def model_options(job: Job, splits: Splits) -> dict[str, Any]:
    """The model's options; the loss's ``class_weights = "balanced"`` become those of the training part.

    Raises ConfigError if there are no classes to balance."""
    of_loss = job.model.options.get("loss", {})
    if not isinstance(of_loss, Mapping) or of_loss.get("class_weights") != "balanced":
        return (
            {"dropout": DROPOUT_OF_VALUES, **job.model.options}
            if _chooses_for_values(job, splits)
            else job.model.options
        )
    y = splits.train.fields.get("y")
    if y is None or y.shape != () or y.dtype.kind not in "iu":
        raise ConfigError('class_weights = "balanced" needs classes: the targets are none, or values')
    weights = class_weights(labels_of(splits.train), y.size)
    return {**job.model.options, "loss": {**of_loss, "class_weights": weights.tolist()}}


def _chooses_for_values(job: Job, splits: Splits) -> bool:
    """Whether model "auto" is a perceptron that predicts values."""
    is_perceptron = job.model.name == "auto" and suited(splits.train.fields) == "mlp"
    return is_perceptron and splits.target is not None and splits.target.kind == "values"


def weight_decay(job: Job, splits: Splits) -> float:
    """optim.weight_decay, in which "auto" is decided by the samples."""
    if job.optim.weight_decay != "auto":
        return float(job.optim.weight_decay)
    is_alone = job.optim.name == "adam" and job.optim.lr == "auto"  # with which it was measured
    is_few = len(splits.train) < MANY_SAMPLES and _chooses_for_values(job, splits)
    return DECAY_OF_FEW if is_alone and is_few else 0.0


def build_groups(job: Job, model: Model, total_steps: int, decay: float = 0.0) -> Groups:
    """The job's optimizers over the model's parameters, for so many steps. decay: optim.weight_decay where "auto"."""
    optim = job.optim if job.optim.weight_decay != "auto" else replace(job.optim, weight_decay=decay)
    layout = Layout.of({name: shape for name, (shape, _) in model.params.items()}, job.train.dtype)
    lr = optim.lr if optim.lr != "auto" else LR_OF_LINEAR if job.model.name == "linear" else LR
    if optim.scale_lr_by_batch:
        lr = scaled_lr(lr, job.train.global_batch, optim.scale_lr_by_batch)
    main = _optimizer(optim, optim.name, lr, {})
    rules = []
    for group in optim.groups:
        wanted = dict(group)
        match, frozen = wanted.pop("match", None), wanted.pop("frozen", False)
        if not isinstance(match, str):
            raise ConfigError(f"each of optim.groups needs match = PATTERN, got {group}")
        name = str(wanted.get("name", optim.name))
        _check_group(match, wanted, name)
        own = _optimizer(optim, name, float(wanted.get("lr", lr)), wanted)
        rules.append(Rule(match, own, frozen=bool(frozen)))
    no_decay = [pattern for pattern in optim.no_decay if optim.weight_decay and _matches(pattern, layout)]
    freeze = [*job.model.freeze, *model.frozen]
    return Groups(
        layout, main, rules, no_decay=no_decay, freeze=freeze, pruning=_pruning(job, layout, freeze, total_steps)
    )


def _pruning(job: Job, layout: Layout, freeze: Sequence[str], total_steps: int) -> Pruning | None:
    """Which weights the job prunes, and when. Raises ConfigError if there are none."""
    optim = job.optim
    if not optim.prune:
        return None
    names = [name for name, shape in layout.shapes.items() if len(shape) > 1 and not _is_among(name, freeze)]
    pruned = [name for name in names if _is_among(name, optim.prune_match)]
    if not pruned:
        raise ConfigError(f"optim.prune_match: no weights match {listed(optim.prune_match)}; there are {listed(names)}")
    return Pruning(
        optim.prune,
        [layout.slices[name] for name in pruned],
        round(optim.prune_begin * total_steps),
        round(optim.prune_end * total_steps),
        optim.prune_every,
        optim.prune_scope == "layer",
    )


def _check_group(match: str, wanted: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError for a setting that a group does not have, such as the schedule, or that has the wrong type."""
    own = ("name", "lr", "weight_decay", *_OPTIONS.get(name, ()))
    unknown = sorted(set(wanted) - set(own))
    if unknown:
        raise ConfigError(
            f"optim.groups: [{match}] with {name} has no setting {unknown[0]!r}; {instead(unknown[0], own)}"
        )
    for setting, value in wanted.items():
        kind: Any = {"name": str, "nesterov": bool}.get(setting, float)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) if kind is float else type(value) is kind
        if not fits:
            raise ConfigError(f"optim.groups: [{match}] {setting} = {value!r} must be a {kind.__name__}")


def _matches(pattern: str, layout: Layout) -> bool:
    return any(fnmatchcase(name, pattern) for name in layout.shapes)


def _is_among(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _optimizer(optim: OptimSettings, name: str, lr: float, overrides: Mapping[str, Any]) -> Optimizer:
    """The optimizer called ``name``; its options are those of [optim] unless a group overrides them."""
    builder = resolve(name, OPTIMIZERS, "optim.name")
    names = () if ":" in name else (*_OPTIONS[name], "weight_decay")
    return builder(lr=lr, **{option: overrides.get(option, getattr(optim, option)) for option in names})


def learning_rate(job: Job, total_steps: int, lr: float) -> LearningRate:
    """step -> learning rate. lr: the rate before any schedule."""
    optim = job.optim
    make = partial(
        schedule,
        optim.schedule,
        warmup_steps=optim.warmup_steps,
        floor=min(optim.min_lr / lr, 1.0) if lr > 0 else 0.0,
        step_every=optim.step_every,
        step_factor=optim.step_factor,
    )
    make(total_steps)  # refuses a wrong setting now, not in the first step
    return LearningRate(lr, make, 0, total_steps)
