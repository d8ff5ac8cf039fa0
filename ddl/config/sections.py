"""The sections of a job: every setting with its type, default and meaning.

Reading them from a file and the command line is load.py's; what may not go together is check.py's.
These names are public: job files and scripts use them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def setting(default: T, meaning: str) -> T:
    """A field with its default and the meaning that ``--help`` shows."""
    start: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    made: T = field(metadata={"meaning": meaning}, **start)
    return made


@dataclass(frozen=True)
class Run:
    """What this run is called, where it is kept, and its seed."""

    name: str = setting("digits", "the run's name; its folder is runs/NAME, or runs/NAME-2, -3, ... where that exists")
    dir: str = setting(
        "", "the run's own folder instead, relative to the current folder; naming one that holds a run continues it"
    )
    seed: int = setting(0, "every random draw follows from it: initial weights, order, dropout, augmentation")


@dataclass(frozen=True)
class Data:
    """What is learned from, how it is split, and how it is cut into shards."""

    source: str = setting("digits", 'a source by name, "files", or your own as "package.module:Name"')
    path: str = setting("", "file, folder or pattern of the samples, for source files")
    targets: str = setting("", "file of the targets, or columns of a CSV file; otherwise as the format says")
    format: str = setting("auto", "format of the files; auto: told by their names and first bytes")
    validation: float | str = setting(0.1, "validation split: a fraction of the samples, or a file; 0: none")
    test: float | str = setting(0.2, "test split: a fraction of the samples, or a file; 0: none")
    shuffle: bool = setting(True, "a new order of the samples in every epoch")
    stratify: bool = setting(True, "splits by fraction keep the share of each class")
    oversample: float = setting(
        0.0, "repeat samples of rare classes: 1 brings each to the size of the largest, 0: none"
    )
    normalize: Literal["none", "feature", "all", "unit"] = setting(
        "feature",
        "by the training split alone: mean 0 and deviation 1 of each feature or channel, or of all values together; "
        "or the range 0 to 1",
    )
    augment: tuple[str, ...] = setting((), 'augmentations in order, such as "shift:1", or "package.module:Name"')
    shards: int | Literal["auto"] = setting(
        "auto", "shards the samples are cut into, fixed for the life of the job; auto: from batch and dataset alone"
    )
    prefetch: int = setting(2, "batches prepared ahead by a thread; 0: none")
    batch_eval: int = setting(256, "samples per forward pass in evaluation and prediction, on each rank")
    options: dict[str, Any] = setting({}, "further arguments of the source, by name")


@dataclass(frozen=True)
class Model:
    """What is trained, on which loss, and what is measured beside it."""

    name: str = setting("cnn", 'a model of the zoo by name, or your own as "package.module:Name"')
    options: dict[str, Any] = setting({}, "further arguments of the model, by name")
    loss: str = setting("auto", 'a loss by name, or "package.module:Name"; auto: the one that goes with the model')
    metrics: tuple[str, ...] = setting(("auto",), "metrics by name; auto: those that go with the loss")
    from_: str = setting("", "a run folder or checkpoint whose parameters training starts from")
    freeze: tuple[str, ...] = setting((), 'patterns of parameter names that are not trained, such as "conv*"')
    strict: bool = setting(True, "with model.from: every parameter must be found there with its shape")


@dataclass(frozen=True)
class Optim:
    """How gradients become updates."""

    name: str = setting("adam", 'an optimizer by name, or "package.module:Name"')
    lr: float = setting(2e-3, "learning rate, the peak of the schedule")
    momentum: float = setting(0.9, "decay of the velocity, for momentum and lars (sgd has none)")
    nesterov: bool = setting(False, "Nesterov's look-ahead, for momentum")
    beta1: float = setting(0.9, "decay of the first moment, for adam, adamw and lamb")
    beta2: float = setting(0.999, "decay of the second moment, for adam, adamw and lamb")
    eps: float = setting(1e-8, "added to the denominator, for adaptive optimizers")
    decay: float = setting(0.9, "decay of the squared gradients, for rmsprop")
    weight_decay: float = setting(0.0, "L2 penalty; for adamw and lamb decoupled from the gradient")
    no_decay: tuple[str, ...] = setting(("*bias", "*norm*.weight"), "patterns of names without weight decay")
    schedule: Literal["constant", "step", "linear", "cosine"] = setting(
        "cosine", "how the learning rate goes over the steps"
    )
    warmup_steps: int = setting(0, "steps over which the learning rate rises from near 0")
    min_lr: float = setting(0.0, "learning rate at the end of a cosine")
    step_every: int = setting(0, "steps between two falls of the step schedule")
    step_factor: float = setting(0.1, "what the learning rate is multiplied by at each fall")
    scale_lr_by_batch: int = setting(0, "global batch for which lr was found: lr grows in proportion; 0: lr as it is")
    clip_norm: float = setting(0.0, "largest global norm of the mean gradient; 0: no clipping")
    sharded: Literal["auto", "on", "off"] = setting(
        "auto",
        "ranks on the CPUs of a node share one replica and update a part of it each; auto: where that pays and the "
        "optimizer sees each element alone; off: a replica a rank",
    )
    groups: tuple[dict[str, Any], ...] = setting(
        (), "tables of {match = PATTERN, name, lr, weight_decay, ...}: other settings for some parameters"
    )


@dataclass(frozen=True)
class Train:
    """How long, in which batches and in which precision."""

    global_batch: int = setting(64, "samples of one step, over all ranks: the same at any number of ranks")
    epochs: int = setting(20, "passes over the training samples")
    steps: int = setting(0, "end after this many steps, whatever epochs says; 0: epochs decides")
    accumulate: int = setting(1, "micro-batches of a step, to save memory")
    dtype: Literal["float32", "float64", "float16"] = setting("float32", "type of parameters and gradients")
    evaluate_every: int = setting(1, "epochs between evaluations on the validation split; 0: only at the end")
    patience: int = setting(0, "evaluations without a better validation loss after which training ends; 0: never")
    compiled: Literal["auto", "on", "off"] = setting("auto", "kernels compiled by Numba; auto: where it is installed")
    callbacks: tuple[str, ...] = setting(
        (), '"package.module:Name" of what is called with every step, at least once; it may have on_epoch and on_end'
    )


@dataclass(frozen=True)
class Comm:
    """How ranks compute and sum."""

    device: Literal["auto", "cpu", "gpu"] = setting("auto", "where a rank computes; auto: a GPU where there is one")
    algorithm: Literal["auto", "shared", "ring", "hierarchical", "native"] = setting(
        "auto", "how gradients are summed; auto: by bytes, ranks and nodes"
    )
    bucket_mib: float = setting(4.0, "size in MiB of the pieces that leave while backward still runs")
    overlap: Literal["auto", "on", "off"] = setting("auto", "sum during backward; auto: where that pays")
    gpu: Literal["auto", "direct", "staged"] = setting(
        "auto", "sums of what lies on GPUs, by MPI directly or staged through the host; auto: direct where MPI takes it"
    )
    gpu_memory: float = setting(0.9, "share of a GPU's memory that the ranks on it take at most together")
    tuning: str = setting("", "a tuning table measured by ddl.bench allreduce")


@dataclass(frozen=True)
class Fault:
    """What is survived, and how."""

    tolerance: Literal["auto", "on", "off"] = setting(
        "auto", "go on when a rank dies; auto: where launcher and MPI can; on: an error where they cannot"
    )
    min_ranks: int = setting(1, "fewer survivors than this stop the job")
    spares: int = setting(0, "ranks that wait to replace a dead one")
    respawn: bool = setting(False, "start a new process for each dead rank; must be ready within recovery_timeout_s")
    hang_timeout_s: float = setting(120.0, "seconds without life after which a rank counts as hung and is killed")
    recovery_timeout_s: float = setting(30.0, "seconds after which a recovery that does not end is given up")
    skip_limit: int = setting(10, "steps in a row that may be skipped for a value that is not finite")
    check_every: int = setting(
        200,
        "steps between comparisons of replicas; 0: never. Ranks that share one (optim.sharded) have none to compare",
    )
    chaos: str = setting("", 'faults to inject, for drills: "kill rank 2 at step 40; ..." or "random:seed=7,kills=3"')


@dataclass(frozen=True)
class Checkpoint:
    """When the state is saved, what is kept, and what is continued."""

    every_s: float = setting(60.0, "seconds between checkpoints; 0: not by time")
    every_steps: int = setting(0, "steps between checkpoints; 0: not by steps")
    every_epochs: int = setting(0, "epochs between checkpoints; 0: not by epochs")
    keep: int = setting(3, "newest checkpoints that are kept")
    keep_best: bool = setting(True, "keep the one with the best validation loss as well")
    resume: str = setting("auto", "auto: the newest checkpoint in run.dir, if any; none; or a checkpoint's path")
    replica: bool = setting(False, "keep a copy of the newest state in every node's memory as well")


@dataclass(frozen=True)
class Metrics:
    """What is shown and recorded."""

    console_every_s: float = setting(
        1.0, "seconds between progress lines, at first; 0: the job says nothing but errors"
    )
    jsonl: bool = setting(True, "write metrics.jsonl: one event a line")
    trace: str = setting("", "file for a Chrome/Perfetto timeline of all ranks")
    tensorboard: bool = setting(False, "write TensorBoard files (extra: tensorboard)")
    plots: bool = setting(False, "write pictures of the curves at the end (extra: plot)")


@dataclass(frozen=True)
class Job:
    """All the settings of a job; frozen, and checked where it was made by load.py."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    comm: Comm = field(default_factory=Comm)
    fault: Fault = field(default_factory=Fault)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    metrics: Metrics = field(default_factory=Metrics)


SECTIONS: dict[str, type] = {
    "run": Run,
    "data": Data,
    "model": Model,
    "optim": Optim,
    "train": Train,
    "comm": Comm,
    "fault": Fault,
    "checkpoint": Checkpoint,
    "metrics": Metrics,
}


def public_names(section: type) -> dict[str, str]:
    """Setting as users write it -> name of the field: ``from`` is a word of Python's own."""
    return {f.name.rstrip("_"): f.name for f in fields(section)}
