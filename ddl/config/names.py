"""The names that settings may take, as literals: a job is checked before the rooms that know them are imported.

tests/unit/config holds them against the tables of those rooms."""

from __future__ import annotations

import re

SOURCES = ("digits", "files")
FORMATS = ("auto", "npy", "npz", "idx", "cifar", "csv", "text", "tokens")
MODELS = ("cnn", "mlp")
LOSSES = ("auto", "cross_entropy", "binary_cross_entropy", "mse")
METRICS = ("auto", "accuracy")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad", "lamb", "lars")
SCHEDULES = ("constant", "step", "cosine")
NORMALISATIONS = ("none", "feature", "all")
AUGMENTATIONS = ("shift", "flip", "crop", "noise", "mixup")
ALGORITHMS = ("auto", "shared", "ring", "hierarchical", "native")

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own(name: str) -> bool:
    """Does ``name`` name something of the user's, as "package.module:Name"?"""
    return _OWN.fullmatch(name) is not None
