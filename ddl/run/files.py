"""Files made of a trained run: an ONNX graph, weights as safetensors, or a small run folder to load again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from ddl.arrays import host
from ddl.checkpoint import Store
from ddl.config import write as write_config
from ddl.config.folder import holds_run
from ddl.data import Normalise
from ddl.errors import CheckpointError, ConfigError
from ddl.export.torch_layout import to_torch
from ddl.run.whole_file import whole_file
from ddl.train.initial import OWN_LAYOUT
from ddl.wording import instead, listed

if TYPE_CHECKING:
    from ddl.run.trained import Trained

LAYOUTS = ("ddl", "torch")


def check_export(path: str | Path, layout: str = "ddl") -> Callable[[Trained, str], bytes]:
    """What writes the bytes of a file with this name. Raises ConfigError if there is no such format or layout."""
    made = FORMATS.get(Path(path).suffix.lower())
    if made is None:
        raise ConfigError(f"{path}: the name must end with {listed(FORMATS)}")
    if layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r} is unknown; {instead(layout, LAYOUTS, 'there are')}")
    if layout != "ddl" and made is not _safetensors:
        raise ConfigError(f"{path}: a layout is chosen for .safetensors files only")
    return made


def export(trained: Trained, path: str | Path, layout: str = "ddl") -> Path:
    """Write ``trained`` as .onnx or .safetensors, whole or not at all. layout: of the weights, "ddl" or "torch".

    Raises ConfigError if the model has no such form, or the file cannot be written."""
    path = Path(path)
    data = check_export(path, layout)(trained, layout)
    with whole_file(path) as file:
        file.write(data)
    return path


def save(trained: Trained, folder: str | Path) -> Path:
    """Write a run folder with one checkpoint, without the optimizer's state: what ``ddl.load``, ``ddl.evaluate`` and
    ``model.from`` need. Raises ConfigError for a folder that holds another run, or cannot be written."""
    folder = Path(folder)
    if folder.suffix in FORMATS:
        raise ConfigError(f"save writes a folder; export({folder.name!r}) writes such a file")
    if holds_run(folder):
        raise ConfigError(f"{str(folder)!r} holds a run already: choose another folder")
    arrays = {name: value for name, value in trained.state.to_named().items() if name.startswith(_OF_MODEL)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        meta = {**trained.meta, "progress": trained.state.progress.to_json()}
        Store(folder / "checkpoints").save(trained.state.progress.step, arrays, meta)
        write_config(trained.job, folder / "config.toml")
    except (OSError, CheckpointError) as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
    return folder


_OF_MODEL = ("params/", "averages/")


def _named(trained: Trained) -> dict[str, np.ndarray]:
    return {
        name: np.array(host(view))
        for name, view in (*trained.state.params.views.items(), *trained.state.buffers.items())
    }


def _safetensors(trained: Trained, layout: str) -> bytes:
    arrays, about = _named(trained), {"layout": OWN_LAYOUT}
    if layout == "torch":
        arrays, about = to_torch(trained.model, arrays, trained.state.progress.step), {"layout": layout, "format": "pt"}
    data: bytes = safetensors.numpy.save(arrays, about)
    return data


def _onnx(trained: Trained, layout: str) -> bytes:
    from ddl.export.onnx import onnx_model

    known = trained.state.progress.normalise
    normalise = None if known is None else Normalise.from_json(known)
    arrays, x = _named(trained), trained.known.fields["x"]
    labels = trained.meaning.names if trained.meaning.has_classes else ()
    data: bytes = onnx_model(trained.model, arrays, x, normalise, labels).SerializeToString()
    return data


FORMATS: Mapping[str, Callable[[Any, str], bytes]] = {".onnx": _onnx, ".safetensors": _safetensors}
