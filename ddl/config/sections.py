"""The sections of a job: every setting with its type, default and meaning.

load.py reads them from files and the command line; check.py rejects incompatible ones. Their names are public."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ddl.config.cluster import SlurmSettings
from ddl.config.setting import setting


@dataclass(frozen=True)
class RunSettings:
    """The name, folder and seed of this run."""

    name: str = setting(
        "digits",
        "name of the run, by default that of its data; the folder is runs/NAME, or runs/NAME-2, -3, ...",
    )
    dir: str = setting("", "the run folder, instead of runs/NAME; a folder that holds a run continues it")
    seed: int = setting(0, "seed of every random choice: initial weights, order, dropout, augmentation", least=0)


@dataclass(frozen=True)
class DataSettings:
    """The data set, its splits and its shards."""

    source: str = setting("digits", 'a source by name, "files", or your own as "package.module:Name"')
    path: str = setting(
        "",
        "file, pattern such as {000..009}.tar, or folder of the samples (of images: with a folder per class); implies "
        "source = files",
    )
    targets: str = setting(
        "",
        "file of the targets (of images: file,label), or columns of a table (none: it has none); "
        "otherwise as the format says",
    )
    target_kind: Literal["auto", "classes", "values", "probabilities", "multilabel"] = setting(
        "auto", "what the targets are; auto: decided from the training split and the loss, and printed at the start"
    )
    format: str = setting(
        "auto",
        "format of the files; auto: detected from names and first bytes. Tables: csv (also TSV; gzip, bzip2, xz, zip), "
        "jsonl, parquet, arrow (Feather), hf (a folder of Hugging Face save_to_disk). Images: images (PNG, JPEG, WebP, "
        "GIF, BMP, TIFF; a folder per class), webdataset (.tar). Arrays: npy, npz, idx, cifar10, cifar100. Text: text, "
        "tokens",
    )
    columns: tuple[str, ...] = setting((), "columns of a table that are inputs; none given: all but the targets")
    drop: tuple[str, ...] = setting((), "columns of a table that are left out")
    types: dict[str, Any] = setting(
        {},
        "table of column = number, category, date, date:dmy, date:mdy, text or drop, where the cells do not say it, "
        'such as zip = "category"',
    )
    max_categories: int = setting(
        20,
        "categories of a column that are one-hot; a column with more is embedded by mlp and linear, and has only the "
        "most frequent ones in other models",
        least=1,
    )
    encoding: str = setting("", "encoding of CSV and JSONL files, such as cp1252; none given: UTF-8")
    missing: tuple[str, ...] = setting(
        (), 'cells that are missing, in addition to "", NA, null, ? and the like, such as -999'
    )
    missing_targets: Literal["refuse", "skip"] = setting("refuse", "what becomes of rows of a table without a target")
    validation: float | str = setting(0.1, "validation split: a fraction of the samples, or a file; 0: none")
    test: float | str = setting(0.2, "test split: a fraction of the samples, or a file; 0: none")
    shuffle: bool = setting(True, "a new order of the samples in every epoch")
    stratify: bool = setting(True, "splits by fraction keep the share of each class")
    oversample: float = setting(
        0.0, "repeat samples of rare classes: 1 brings each to the size of the largest, 0: none", least=0
    )
    normalize: Literal["auto", "none", "feature", "all", "unit"] = setting(
        "auto",
        "scaling learned from the training split. auto: feature, and none for tokens; "
        "feature: mean 0 and deviation 1 of each feature or channel; all: of all values together; "
        "unit: the range 0 to 1",
    )
    scale_targets: bool = setting(
        True,
        "targets that are values are learned as multiples of their deviation from their mean in the training split, by "
        "networks of ddl with a linear last layer and the losses mse, mae and huber; the loss is in these units, "
        "predictions and metrics are in those of the data",
    )
    augment: tuple[str, ...] = setting((), 'augmentations in order, such as "shift:1", or "package.module:Name"')
    shards: int | Literal["auto"] = setting(
        "auto", "shards the samples are cut into, fixed for the life of the job; auto: from batch and dataset only"
    )
    prefetch: int = setting(2, "batches prepared ahead by a thread; 0: none", least=0)
    batch_eval: int | Literal["auto"] = setting(
        "auto",
        "samples per forward pass in evaluation and prediction, on each rank; auto: 256, fewer if they are large",
    )
    image_size: int | str = setting(
        "auto",
        'pixels of each image: 64, or "HEIGHTxWIDTH"; auto: their own size if they share one of at most 128 pixels, '
        "else 64 for the shorter side",
    )
    resize: Literal["crop", "stretch", "pad"] = setting(
        "crop",
        "how an image gets that size. crop: scale it to cover the size and cut off the rest; stretch: change its "
        "proportions; pad: scale it to fit inside and add black",
    )
    channels: int | Literal["auto"] = setting(
        "auto", "of an image. 1: grey; 3: colour; 4: colour and transparency; auto: 1 if all images are grey, else 3"
    )
    damaged: Literal["error", "skip"] = setting(
        "error", "images that cannot be decoded end the job, or are left out (all are decoded once to find them)"
    )
    options: dict[str, Any] = setting({}, "further arguments of the source, by name")


@dataclass(frozen=True)
class ModelSettings:
    """The model, its loss and its metrics."""

    name: str = setting(
        "auto",
        'a model of the zoo by name, or your own as "package.module:Name"; auto: mlp with dropout for tables, cnn for '
        "images, text or transformer for tokens",
    )
    options: dict[str, Any] = setting({}, "further arguments of the model, by name")
    loss: str = setting("auto", 'a loss by name, or "package.module:Name"; auto: chosen from the model and the targets')
    metrics: tuple[str, ...] = setting(("auto",), "metrics by name; auto: chosen from the loss")
    from_: str = setting(
        "", "a run folder (its final state), checkpoint or state_dict (.pt) whose parameters training starts from"
    )
    teacher: str = setting(
        "", "a run folder whose model, as its training ended, answers every training sample: the model learns from it"
    )
    teacher_temperature: float = setting(
        2.0, "with model.teacher: both models' logits are divided by it before they are compared", above=0
    )
    teacher_alpha: float = setting(0.5, "with model.teacher: its share of the loss; the rest is the targets'", least=0)
    name_map: dict[str, Any] = setting(
        {}, 'with model.from: names there and the names here, of layers or arrays, such as {"encoder.fc1" = "dense1"}'
    )
    freeze: tuple[str, ...] = setting((), 'patterns of parameter names that are not trained, such as "conv*"')
    strict: bool = setting(True, "with model.from: every parameter must exist there with the same shape")


@dataclass(frozen=True)
class OptimSettings:
    """How gradients become updates."""

    name: str = setting("adam", 'an optimizer by name, or "package.module:Name"')
    lr: float | Literal["auto"] = setting(
        "auto", "learning rate, the peak of the schedule; auto: 0.002, and 0.02 for model linear", least=0
    )
    momentum: float = setting(0.9, "decay of the velocity, for momentum and lars (sgd has none)", least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's look-ahead, for momentum")
    beta1: float = setting(0.9, "decay of the first moment, for adam, adamw and lamb", least=0, below=1)
    beta2: float = setting(0.999, "decay of the second moment, for adam, adamw and lamb", least=0, below=1)
    eps: float = setting(1e-8, "added to the denominator, for adaptive optimizers", above=0)
    decay: float = setting(0.9, "decay of the squared gradients, for rmsprop", least=0, below=1)
    weight_decay: float | Literal["auto"] = setting(
        "auto", "L2 penalty; for adamw and lamb decoupled from the gradient; auto: 0.2 for few values", least=0
    )
    no_decay: tuple[str, ...] = setting(("*bias", "*norm*.weight"), "patterns of names without weight decay")
    schedule: Literal["constant", "step", "linear", "cosine"] = setting(
        "cosine", "how the learning rate changes over the steps"
    )
    resume_schedule: Literal["rescale", "restart", "hold"] = setting(
        "rescale",
        "what a run that is resumed with another number of steps does with its schedule: rescale it to the new end, "
        "restart it over the steps that are left, or hold its last value after its old end",
    )
    warmup_steps: int = setting(0, "steps over which the learning rate rises from near 0", least=0)
    min_lr: float = setting(0.0, "learning rate at the end of a cosine", least=0)
    step_every: int = setting(0, "steps between two decreases of the step schedule", least=0)
    step_factor: float = setting(0.1, "factor of the learning rate at each decrease", above=0)
    scale_lr_by_batch: int = setting(
        0, "global batch that lr was tuned for: lr is scaled in proportion to the batch; 0: not scaled", least=0
    )
    clip_norm: float = setting(0.0, "largest global norm of the mean gradient; 0: no clipping", least=0)
    sharded: Literal["auto", "on", "off"] = setting(
        "auto",
        "ranks on the CPUs of a node share one replica, each updates a part of it; auto: if that is faster and the "
        "optimizer is elementwise; off: one replica per rank",
    )
    prune: float = setting(
        0.0, "share of the weights that become zero during training, the smallest ones; 0: none", least=0, below=1
    )
    prune_scope: Literal["global", "layer"] = setting(
        "global", "global: that share of all weights together; layer: of each weight matrix"
    )
    prune_match: tuple[str, ...] = setting(
        ("*",), "patterns of names of the parameters that are pruned, among those of two or more axes"
    )
    prune_begin: float = setting(0.1, "share of the steps after which pruning begins", least=0, below=1)
    prune_end: float = setting(0.6, "share of the steps after which the share prune is reached", above=0)
    prune_every: int = setting(10, "steps between two choices of the weights that become zero", least=1)
    layer_decay: float = setting(
        1.0,
        "learning rate of each layer as a multiple of that of the next one: below 1, first layers change less",
        above=0,
    )
    unfreeze: dict[str, Any] = setting(
        {}, 'patterns of parameter names that are not trained before an epoch, such as {"conv*" = 3}: epochs 1 and 2'
    )
    groups: tuple[dict[str, Any], ...] = setting(
        (), "tables of {match = PATTERN, name, lr, weight_decay, ...}: other settings for some parameters"
    )


@dataclass(frozen=True)
class TrainSettings:
    """How long, in which batches and in which precision."""

    global_batch: int = setting(64, "samples of one step, over all ranks: the same at any number of ranks", least=1)
    epochs: int | Literal["auto"] = setting(
        "auto",
        "passes over the training samples; auto: 20, and for files as many as make 600 steps, up to 300",
    )
    steps: int = setting(0, "number of steps, overriding epochs; 0: epochs decides", least=0)
    balance: Literal["off", "auto"] = setting(
        "off", "auto: shards move to the ranks that compute faster; the batches and their order stay the same"
    )
    accumulate: int = setting(1, "micro-batches of a step, to save memory", least=1)
    dtype: Literal["float32", "float64", "float16"] = setting("float32", "type of parameters and gradients")
    precision: Literal["full", "mixed"] = setting(
        "full",
        "mixed: forward and backward in float16, parameters and sums in float32, with a loss scale that follows "
        "overflows; for GPUs",
    )
    evaluate_every: int = setting(1, "epochs between evaluations on the validation split; 0: only at the end", least=0)
    patience: int = setting(
        0, "evaluations without a better validation loss after which training ends; 0: never", least=0
    )
    restore_best: Literal["auto", "on", "off"] = setting(
        "auto", "end with the state of the best validation loss, not the newest; auto: if patience is set"
    )
    compiled: Literal["auto", "on", "off"] = setting("auto", "kernels compiled by Numba; auto: if it is installed")
    callbacks: tuple[str, ...] = setting(
        (), '"package.module:Name" of callables, called with the outcome of each step; see ddl.Callback'
    )


@dataclass(frozen=True)
class CommSettings:
    """How ranks compute and sum."""

    device: Literal["auto", "cpu", "gpu"] = setting("auto", "where a rank computes; auto: a GPU if there is one")
    algorithm: str = setting(
        "auto", "how gradients are summed: auto (by bytes, ranks and nodes), native, ring, shared or hierarchical"
    )
    bucket_mib: float = setting(4.0, "size in MiB of the gradient buckets sent while backward runs", above=0)
    overlap: Literal["auto", "on", "off"] = setting("auto", "sum during backward; auto: if that is faster")
    gpu: Literal["auto", "direct", "staged"] = setting(
        "auto", "how sums leave a GPU: by MPI directly, or staged through the host; auto: direct if MPI supports it"
    )
    gpu_memory: float = setting(0.9, "largest share of a GPU's memory that all ranks on it take together", above=0)
    tuning: str = setting("", "a tuning table measured by ddl.bench allreduce")
    sync: Literal["step", "local"] = setting(
        "step",
        "when ranks sum: in each step; or local: each rank takes inner_steps steps without the others, then all apply "
        "the mean of their changes (DiLoCo); results then depend on the number of ranks",
    )
    inner_steps: int = setting(
        20, "with sync local: updates of each rank in a step, which takes that many global batches", least=1
    )
    outer_lr: float = setting(0.7, "with sync local: learning rate of the update by the mean change", above=0)
    outer_momentum: float = setting(0.9, "with sync local: its Nesterov momentum; 0: none", least=0, below=1)
    wire: Literal["float32", "bfloat16", "float16", "int8"] = setting(
        "float32",
        "how float32 gradients travel between nodes; what a shorter form cuts off is added to the next step's gradient",
    )


@dataclass(frozen=True)
class ParallelSettings:
    """How the model is spread over ranks."""

    stages: int = setting(
        1,
        "stages that the network is cut into, each held by other ranks; train.accumulate micro-batches of a step flow "
        "through them. 1: every rank has the whole network",
        least=1,
    )
    cut: tuple[str, ...] = setting(
        (), "layers that the stages after the first begin with; none given: chosen by measured cost"
    )


@dataclass(frozen=True)
class FaultSettings:
    """Fault tolerance: which failures training survives, and how."""

    tolerance: Literal["auto", "on", "off"] = setting(
        "auto", "keep training when a rank dies; auto: if launcher and MPI support it; on: an error elsewhere"
    )
    min_ranks: int = setting(1, "fewer survivors than this stop the job", least=1)
    spares: int = setting(0, "ranks that wait to replace a dead one", least=0)
    respawn: bool = setting(
        False, "after a rank's death, stop at a checkpoint and start again on all ranks (only with ddl.launch)"
    )
    hang_timeout_s: float | Literal["auto"] = setting(
        "auto",
        "seconds without progress after which a rank counts as hung and is killed; auto: 120, or never if tolerance is "
        "off",
        above=0,
    )
    recovery_timeout_s: float = setting(30.0, "seconds after which an unfinished recovery is abandoned", above=0)
    startup_timeout_s: float = setting(
        60.0, "seconds without progress after which a launch whose ranks have not all started ends; 0: never", least=0
    )
    skip_limit: int = setting(10, "consecutive steps that may be skipped because of NaN or infinity", least=1)
    check_every: int = setting(
        200,
        "steps between comparisons of replicas; 0: never. Ranks that share a replica (optim.sharded) compare nothing",
        least=0,
    )
    chaos: str = setting("", 'faults to inject, for drills: "kill rank 2 at step 40; ..." or "random:seed=7,kills=3"')


@dataclass(frozen=True)
class CheckpointSettings:
    """When checkpoints are written, how many are kept, and which one is resumed."""

    every_s: float = setting(60.0, "seconds between checkpoints; 0: not by time", least=0)
    every_steps: int = setting(0, "steps between checkpoints; 0: not by steps", least=0)
    every_epochs: int = setting(0, "epochs between checkpoints; 0: not by epochs", least=0)
    keep: int = setting(3, "newest checkpoints that are kept", least=1)
    keep_best: bool = setting(True, "also keep the checkpoint with the best validation loss")
    resume: str = setting("auto", "auto: the newest checkpoint in run.dir, if any; none; or a checkpoint's path")
    replica: bool = setting(False, "also keep a copy of the newest state in the memory of every node")
    replica_every_s: float = setting(
        1.0,
        "seconds between two such copies, or more if copying takes over 1 % of the time; 0: with those on disk",
        least=0,
    )


@dataclass(frozen=True)
class MetricsSettings:
    """Console output and recorded metrics."""

    console_every_s: float = setting(
        1.0,
        "seconds between progress lines, at first; 0: only errors are printed",
        least=0,
    )
    jsonl: bool = setting(True, "write metrics.jsonl: one event per line")
    trace: str = setting("", "file for a Chrome/Perfetto timeline of all ranks")
    tensorboard: bool = setting(False, "write TensorBoard files (extra: tensorboard)")
    prometheus: str = setting("", "file for the node exporter's textfile collector, such as /var/lib/.../ddl.prom")
    plots: Literal["auto", "on", "off"] = setting(
        "auto",
        "draw curves.png and other plots at the end (extra: plot); auto: if matplotlib is installed and the run took "
        "10 s or longer, as drawing takes about two",
    )
    plots_theme: Literal["light", "dark", "both"] = setting("light", "colours of the plots; both: also NAME-dark.png")


@dataclass(frozen=True)
class Job:
    """All the settings of a job; frozen. ``load`` and ``override`` return checked ones."""

    run: RunSettings = field(default_factory=RunSettings)
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    comm: CommSettings = field(default_factory=CommSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    fault: FaultSettings = field(default_factory=FaultSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)

    @property
    def restores_best(self) -> bool:
        """``train.restore_best``, in which "auto" is decided."""
        setting = self.train.restore_best
        return setting == "on" or (setting == "auto" and self.train.patience > 0 and self.checkpoint.keep_best)

    @property
    def micro_batches(self) -> int:
        """Of a step: ``train.accumulate``, or with ``comm.sync = local`` each rank's own updates."""
        return self.comm.inner_steps if self.comm.sync == "local" else self.train.accumulate

    @property
    def step_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self.train.global_batch * (self.comm.inner_steps if self.comm.sync == "local" else 1)


SECTIONS: dict[str, type] = {section.name: type(getattr(Job(), section.name)) for section in fields(Job)}


def public_names(section: type) -> dict[str, str]:
    """Setting as users write it -> name of the field: ``from`` is a keyword of Python."""
    return {f.name.rstrip("_"): f.name for f in fields(section)}
