"""The values that training starts from, if not the model's own: those of a run, of a file of weights, or of a script.

PyTorch's names and layouts are turned into ddl's by ddl/export/torch_layout.py."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ddl.arrays import host
from ddl.checkpoint import Store
from ddl.config import Job
from ddl.errors import CheckpointError, ConfigError, DataError
from ddl.export.torch_layout import from_torch
from ddl.metrics import read_summary
from ddl.models import Model
from ddl.models.target_scale import DEVIATION, MEAN, TargetScale
from ddl.registry import resolve
from ddl.train.state import TrainingState
from ddl.wording import instead

# Files of weights of other frameworks: suffix -> what reads one.
WEIGHTS = dict.fromkeys((".pt", ".pth"), "ddl.torch:read_weights")
OWN_LAYOUT = "ddl"  # noted in a safetensors file whose names and layouts are ddl's


def start_from(job: Job, model: Model) -> Callable[[Any], list[str]] | None:
    """A function that copies ``model.from`` into a new state, by name; None if the setting is empty.

    Strict: every parameter must be found with its shape. Otherwise what matches is taken, and what did not is
    returned in one line. Running averages are taken too if they match. Raises ConfigError that names mismatches."""
    if not job.model.from_:
        return None

    def take(state: Any) -> list[str]:
        # Read only when needed: a run that resumes from its own checkpoint does not need the other run any more.
        skipped: list[str] = []
        arrays = _saved_arrays(Path(job.model.from_), model, job.model.name_map, skipped.append)
        if model.target_scale is not None:
            arrays = _with_scale(model.target_scale, arrays, state)
        wrong, fitting = [], []
        for kind, views in (("params", state.params.views), ("averages", state.buffers)):
            for name, view in views.items():
                found = arrays.get(f"{kind}/{name}")
                if found is None:
                    wrong.append(f"{name} is not there")
                elif found.shape != view.shape:
                    wrong.append(f"{name} has shape {found.shape} there and {view.shape} here")
                else:
                    fitting.append((view, found))
        unused = sorted(
            name.removeprefix("params/")
            for name in arrays
            if name.startswith("params/")
            and name.removeprefix("params/") not in {**state.params.views, **state.buffers}
        )
        problems = f"model.from = {job.model.from_!r}: " + _few(wrong) + (f"; unused: {_few(unused)}" if unused else "")
        if wrong and (job.model.strict or not fitting):
            raise ConfigError(problems + ("; model.strict = false takes what matches" if fitting else ""))
        for view, found in fitting:
            view[...] = state.device.array(found)
        total = len(fitting) + len(wrong)
        taken = f"{len(fitting)} of {total} arrays were taken, the others keep their initial values"
        return [*skipped, *([f"{problems}; {taken}"] if wrong else [])]

    return take


def _with_scale(scale: TargetScale, arrays: Mapping[str, np.ndarray], state: Any) -> dict[str, np.ndarray]:
    """``arrays`` of a network that may have learned targets of another scale, as those of a network with the scale in
    ``state`` that predicts the same; only with this scale where its head does not fit."""
    own = {name: host(state.buffers[name]) for name in (MEAN, DEVIATION)}
    named = {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith(_OF_MODEL)}
    found = {**arrays, **{f"averages/{name}": value for name, value in own.items()}}
    of_head = [f"{scale.head}.weight", f"{scale.head}.bias"]
    fits = all(name in named and named[name].shape == state.params.views[name].shape for name in of_head)
    is_same = all(name in named and np.array_equal(named[name], value) for name, value in own.items())
    if is_same or not fits or any(named.get(name, value).shape != value.shape for name, value in own.items()):
        return found
    converted = scale.unfolded(scale.folded(named), own[MEAN], own[DEVIATION])
    return {**found, **{f"params/{name}": converted[name] for name in of_head}}


_OF_MODEL = ("params/", "averages/")


def _saved_arrays(
    path: Path, model: Model, names: Mapping[str, str], say: Callable[[str], None]
) -> Mapping[str, np.ndarray]:
    """The arrays, below "params/" and "averages/", of a run, a checkpoint or a file of weights. names: new ones."""
    if path.suffix in WEIGHTS:
        named = renamed(resolve(WEIGHTS[path.suffix], {}, "weights")(path), names)
        return _both(from_torch(model, named) if model.networks else named)
    if path.suffix == ".safetensors":
        found, layout = _read_safetensors(path)
        named = renamed(found, names)
        return _both(from_torch(model, named) if model.networks and layout != OWN_LAYOUT else named)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    is_store = folder.name == "checkpoints"
    store = Store(folder if is_store else folder.parent, say=say)
    try:
        arrays = store.load(choose_checkpoint(folder.parent, "final", store)[0] if is_store else folder)[0]
    except CheckpointError as error:
        raise ConfigError(f"model.from = {str(path)!r}: {error}") from error
    if not names:
        return arrays
    return _both(renamed({n.partition("/")[2]: v for n, v in arrays.items() if n.startswith(_OF_MODEL)}, names))


def renamed(arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """``arrays`` with other names. names: theirs -> ours, of an array or of a layer, whose arrays lie below it.

    The longest name that fits applies. Raises ConfigError for one that fits no array, and if two become one."""
    found: dict[str, np.ndarray] = {}
    unused = set(names)
    for name, value in arrays.items():
        fitting = max((one for one in names if name == one or name.startswith(f"{one}.")), key=len, default=None)
        if fitting is not None:
            unused.discard(fitting)
        own = name if fitting is None else f"{names[fitting]}{name[len(fitting) :]}".lstrip(".")
        if own in found:
            raise ConfigError(f"model.name_map: two arrays would be called {own!r}")
        found[own] = value
    if unused:
        raise ConfigError(f"model.name_map: there is no {min(unused)!r}; {instead(min(unused), arrays, 'there are')}")
    return found


def choose_checkpoint(folder: Path, asked: str, store: Store) -> tuple[Path | None, str]:
    """(path, kind) of the checkpoint to use; the path None is the newest that can be read.

    asked: "final", "newest", "best" or a checkpoint's folder. The final one is what training evaluated at its end,
    according to summary.json: the best if it was restored. Without such a record it is the newest.
    Raises CheckpointError if there is no best."""
    if asked == "final":
        try:
            final = read_summary(folder).get("final")
        except DataError:
            final = None
        is_best = isinstance(final, Mapping) and final.get("checkpoint") == "best"
        asked = "best" if is_best and store.best() is not None else "newest"
    if asked == "newest":
        return None, asked
    if asked == "best":
        path = store.best()
        if path is None:
            raise CheckpointError("no checkpoint was evaluated, so none is the best")
        return path, asked
    return (Path(asked) if Path(asked).exists() else store.folder / asked), Path(asked).name


def _both(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{kind}/{name}": value for kind in ("params", "averages") for name, value in named.items()}


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """(arrays by name, their layout) of a file; the layout is PyTorch's unless ddl has noted its own."""
    try:
        with safe_open(path, "numpy") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get("layout", "")
    except (OSError, SafetensorError, TypeError) as error:
        raise ConfigError(f"model.from = {str(path)!r} cannot be read: {error}") from error


def load_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a Task that begins with given values.

    Its ``initial`` sets parameters and averages to given arrays; the others keep their initial values.
    It raises ConfigError for a name or shape that the model does not have."""

    def load(state: TrainingState) -> list[str]:
        views = {**state.params.views, **state.buffers}
        for name, value in values.items():
            if name not in views:
                raise ConfigError(f"initial: the model has no parameter {name!r}; {instead(name, views, 'it has')}")
            array = np.asarray(value, views[name].dtype)
            if array.shape != views[name].shape:
                raise ConfigError(f"initial: {name} has shape {array.shape}, the model's has {views[name].shape}")
            views[name][...] = state.device.array(array)
        return []

    digest = hashlib.sha256()
    for name in sorted(values):
        array = np.ascontiguousarray(host(values[name]))
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.data)
    return {"initial": load, "initial_digest": digest.hexdigest()[:16]}


def _few(things: Sequence[str], most: int = 4) -> str:
    return ", ".join(things[:most]) + (f" and {len(things) - most} more" if len(things) > most else "")
