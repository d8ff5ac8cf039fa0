"""Wording of messages: counts, lists of names, and suggestions for unknown names.

Callers supply the names: settings, options, registries of models and losses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import groupby

# Words of other packages -> the words used here. A suggestion is made only where the right-hand name is valid.
SYNONYMS: Mapping[str, str] = {
    "learning_rate": "lr",
    "batch_size": "global_batch",
    "batch": "global_batch",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "n_epochs": "epochs",
    "max_steps": "steps",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "mixed_precision": "precision",
    "amp": "precision",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "double": "float64",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "gradient_accumulation_steps": "accumulate",
    "early_stopping": "patience",
    "val_split": "validation",
    "pretrained": "from",
    "weights": "from",
    "save_dir": "dir",
    "log_dir": "dir",
    "world_size": "ranks",
    "optimizer": "optim",
    "criterion": "loss",
    "dataset": "data",
    "gpus": "device",
    "num_workers": "prefetch",
    "wd": "weight_decay",
    "output_dir": "dir",
    "acc": "accuracy",
    "bce": "binary_cross_entropy",
    "nll": "cross_entropy",
    "l1": "mae",
    "l2": "mse",
    "resnet": "cnn",
    "vgg": "cnn",
    "bert": "transformer",
    "gpt": "transformer",
}


def counted(number: int, noun: str) -> str:
    """ "1 rank", "4 ranks", "12,345 samples"."""
    ending = "" if number == 1 else "es" if noun.endswith(("nch", "tch", "ss")) else "s"
    return f"{number:,} {noun}{ending}"


def numbered(noun: str, numbers: Iterable[int]) -> str:
    """ "rank 3", "ranks 3 and 4", "ranks 0, 3-7 and 9"; "an unknown rank" where there are none."""
    known = sorted(set(numbers))
    runs = [[number for _, number in run] for _, run in groupby(enumerate(known), lambda pair: pair[1] - pair[0])]
    words = [word for run in runs for word in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else run)]
    return f"{noun}{'s' * (len(known) > 1)} {listed(words, 'and')}" if known else f"an unknown {noun}"


def listed(names: Iterable[object], last: str = "or") -> str:
    """``names`` as a phrase: "a", "a or b", "a, b or c"."""
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else "nothing"


def named(values: Mapping[str, object]) -> str:
    """Values by name as a phrase: "x 4 and y 3"."""
    return listed((f"{name} {value}" for name, value in values.items()), "and")


def closest(word: str, known: Iterable[str]) -> str | None:
    """The valid name that ``word`` most likely means: spelled almost alike, or another package's word for it."""
    plain = {_plain(name): name for name in known}
    key = _plain(word)
    synonym = SYNONYMS.get(key) or SYNONYMS.get(key.rstrip("0123456789_"))
    if synonym in plain.values():
        return synonym
    alike = difflib.get_close_matches(key, plain, 1, 0.65)
    return plain[alike[0]] if alike else None


def instead(word: str, known: Iterable[str], fallback: str = "known are") -> str:
    """The end of an error about the unknown ``word``: "did you mean 'steps'?", or "known are a, b and c"."""
    names = sorted(known)
    match = closest(word, names)
    return f"did you mean {match!r}?" if match else f"{fallback} {listed(names, 'and')}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
