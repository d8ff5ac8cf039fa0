"""Choose the plots of a trained run: its curves, its confusion matrix, generated or reconstructed samples.

metrics/plots.py draws them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddl.arrays import Arena, host
from ddl.config import MetricsSettings
from ddl.data import Normalise
from ddl.metrics import plots, read_lines
from ddl.models import Model
from ddl.nn import Context
from ddl.train.state import TrainingState

if TYPE_CHECKING:
    from ddl.run.log import RunLog
    from ddl.train.loop import Loop

LEAST_S = 10.0  # a shorter run would end noticeably later: matplotlib takes 1 s to import and 0.4 s per plot
THEMES = {"light": [("light", "")], "dark": [("dark", "")], "both": [("light", ""), ("dark", "-dark")]}
STEPS = 20_000  # a curve of more looks the same
_IMAGES = 64
_PAIRS = 32


def draw_pictures(loop: Loop, log: RunLog, metrics: MetricsSettings) -> list[Path]:
    """Draw PNG files about the finished run of ``loop`` into its folder; on the leader, after the summary.

    Training is complete and saved by then, so an error here is only a warning."""
    is_auto, themes = metrics.plots == "auto", THEMES[metrics.plots_theme]
    if log.folder is None or metrics.plots == "off" or (is_auto and time.time() - log.began < LEAST_S):
        return []
    if not plots.has_matplotlib():
        if not is_auto:
            log.warn("metrics.plots: no pictures, matplotlib is not installed (extra: plot)")
        return []
    try:
        return [path for theme in themes for path in _draw(loop, log.folder, *theme)]
    except Exception as error:
        log.warn(f"metrics.plots: no more pictures ({type(error).__name__}: {error})")
        return []


def _draw(loop: Loop, folder: Path, theme: str, suffix: str) -> Iterator[Path]:
    def path(name: str) -> Path:
        return folder / f"{name}{suffix}.png"

    lines = folder / "metrics.jsonl"
    found = plots.curves(read_lines(lines, most_steps=STEPS), path("curves"), theme) if lines.exists() else None
    if found is not None:
        yield found
    results = loop.state.progress.results
    names = loop.task.train.names
    for part in ("test", "validation"):
        if "confusion" in results.get(part, {}):
            yield plots.confusion(results[part]["confusion"], names, path("confusion"), theme, part)
            break
    model = loop.task.model
    if model.generates:
        images = samples(model, loop.state, _IMAGES, loop.task.seed)
        if _is_image(images):
            yield plots.grid(images, path("samples"), theme=theme)
    elif model.reconstructs and loop.task.pipeline is None:  # this rank has one stage
        pairs = _reconstructions(loop, model)
        if pairs is not None:
            # Outputs may slightly exceed the range of the images, which therefore set the scale.
            scale = float(pairs[::2].min()), float(pairs[::2].max())
            title = "held-out images, each with its reconstruction to the right"
            yield plots.grid(pairs, path("reconstructions"), title=title, scale=scale, theme=theme)


def samples(model: Model, state: TrainingState, count: int, seed: int) -> np.ndarray:
    """``count`` samples that a generator draws, in the units of the data: (count, *shape)."""
    drawn = np.array(host(model.sample(state.params.views, state.buffers, count, seed)))
    return _undo(drawn, state.progress.normalise)


def _undo(x: np.ndarray, normalise: Mapping[str, Any] | None) -> np.ndarray:
    """Undo the normalisation."""
    return x if normalise is None else Normalise.from_json(normalise).undo(x)


def _reconstructions(loop: Loop, model: Model) -> np.ndarray | None:
    """Held-out images, each beside its reconstruction; None if samples are not images."""
    source = loop.task.test or loop.task.validation or loop.task.train
    count = min(_PAIRS, len(source))
    source.hold([range(count)])
    batch: dict[str, Any] = source.gather(np.arange(count))
    before = np.array(batch["x"])
    if not _is_image(before):
        return None
    for transform in loop.work.transforms:
        batch = transform(batch, [slice(0, count)], [])
    device = loop.state.device
    context = Context(segments=[slice(0, count)], shards=[0], arena=Arena(device.xp))
    inputs = {name: device.array(value) for name, value in batch.items()}
    outputs = model.predict(loop.state.params.views, loop.state.buffers, inputs, context)
    after = _undo(np.array(host(outputs["output"])), loop.state.progress.normalise)
    return np.stack([before, after], axis=1).reshape(2 * count, *before.shape[1:])


def _is_image(x: np.ndarray) -> bool:
    return x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3))
