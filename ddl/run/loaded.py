"""A trained model in a script: ``ddl.load`` returns it, and it answers arrays, tables, texts and files.

trained.py opens the run; meaning.py knows what its outputs mean."""

from __future__ import annotations

import csv
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddl.arrays import Arena, host
from ddl.data import Arrays, Source
from ddl.data.formats.files import Concat
from ddl.errors import DataError, UserError
from ddl.nn import Context
from ddl.run.files import export, save
from ddl.run.predictions import Predictions, format_of, write
from ddl.run.trained import Trained
from ddl.train.evaluate import batches
from ddl.wording import counted, listed

MOST_AT_ONCE = 256  # samples of an array that need not be cut into batches


def load(
    run: str | Path,
    checkpoint: str = "final",
    *,
    trust: bool = False,
    network: Any = None,
    say: Callable[[str], None] = lambda message: None,
) -> TrainedModel:
    """The model of a run's folder, or of one that ``save`` wrote; it computes on this process alone, on the CPU.

    checkpoint: "final" (what training evaluated at its end), "newest", "best", or a checkpoint's folder. trust: run the
    code that the run names. network: the module or network, where only the script that trained it can make it. say:
    called with a line about each damaged checkpoint that was passed over. Raises ConfigError if it cannot be loaded."""
    return TrainedModel(Trained.open(run, checkpoint, None, say, trust, network))


class _OfThread(threading.local):
    """What each thread keeps for its answers."""

    context: Context | None = None


class TrainedModel:
    """Answers samples as they were before training: normalisation, columns and words are those of the training data.

    Samples are an array (rows, ...), or one sample; a dict of columns, a list of dicts, a table of pandas, or rows of
    cells in the order of the training data's columns; a text, or several; an image of Pillow, or several; or the path
    of a file that training could read, or several paths.
    Several threads may ask at once."""

    def __init__(self, trained: Trained):
        self.trained = trained
        self._transforms = list(trained.transforms)
        self._x = trained.known.fields["x"]
        self._features = () if trained.takes_text else trained.known.columns("features")
        self._of_thread = _OfThread()

    def __repr__(self) -> str:
        trained, x = self.trained, self._x
        count = sum(int(np.prod(shape)) for shape, _ in trained.model.params.values())
        labels = f", {len(self.labels)} labels" if self.labels is not None else ""
        return (
            f"TrainedModel({str(trained.folder)!r}, {trained.job.model.name}, {counted(count, 'parameter')}, "
            f"x {tuple(x.shape)} {x.dtype}{labels}, {trained.checkpoint})"
        )

    @property
    def checkpoint(self) -> str:
        """Which checkpoint it is, in words."""
        return self.trained.checkpoint

    @property
    def labels(self) -> np.ndarray | None:
        """The classes in the order of ``predict_proba``, by name, or as whole numbers; None if it predicts values."""
        meaning, outputs = self.trained.meaning, self._outputs_per_sample
        if meaning.is_multilabel:
            return np.array(meaning.classes(outputs))
        if not meaning.has_classes:
            return None
        count = outputs if meaning.kind == "logits" else 2
        return meaning.named(np.arange(count), count)

    @property
    def _outputs_per_sample(self) -> int:
        y = self.trained.known.fields.get("y")
        network, of_sample = next(iter(self.trained.model.networks.values()), (None, ()))
        shape = network.spec(of_sample).output if network is not None else () if y is None else (y.size or 1,)
        return int(shape[-1]) if shape else 1

    def predict(self, x: Any) -> Any:
        """The label of each sample; values where the model predicts these; a reconstruction for an autoencoder.

        Of a single sample, its answer alone. Raises UserError for samples of another shape or type."""
        return self._each(x, self._predicted)

    def predict_proba(self, x: Any) -> Any:
        """The probability of each class: (rows, classes) in the order of ``labels``. Raises UserError for values."""
        return self._each(x, self.trained.meaning.probabilities)

    def outputs(self, x: Any) -> Any:
        """What the network computes, such as logits: (rows, ...)."""
        return self._each(x, lambda output: output)

    def table(self, x: Any) -> Predictions:
        """What ``ddl.predict`` would write: labels and probabilities, or values, by name."""
        single = self._of_one(x)
        output = self.outputs(x if single is None else single)
        rows = np.arange(1, len(output) + 1)
        return Predictions({"row": rows, **self.trained.meaning.columns(output)})

    def write(self, x: Any, path: str | Path) -> Path:
        """Write ``table`` of these samples as .csv, .jsonl, .parquet, .npz or .npy."""
        write(self.table(x), str(path), format_of(str(path)))
        return Path(path)

    def save(self, folder: str | Path) -> Path:
        """Write a folder that ``ddl.load`` and ``model.from`` read; it needs nothing else."""
        return save(self.trained, folder)

    def export(self, path: str | Path, layout: str = "ddl") -> Path:
        """Write an .onnx file, or weights as .safetensors; layout "torch": with PyTorch's names and layouts."""
        return export(self.trained, path, layout)

    def _predicted(self, output: np.ndarray) -> np.ndarray:
        meaning = self.trained.meaning
        if meaning.is_multilabel:
            return np.array([row["labels"] for row in Predictions(meaning.columns(output)).rows()])
        if not meaning.has_classes:
            return output if meaning.kind == "values" else meaning.probabilities(output)
        return meaning.named(meaning.numbers(output), output.shape[-1] if meaning.kind == "logits" else 2)

    # From samples to outputs.

    def _each(self, x: Any, meaning: Callable[[np.ndarray], np.ndarray]) -> Any:
        self.trained.refuse_generator()
        single = self._of_one(x)
        if single is not None:
            return self._each(single, meaning)[0]
        if isinstance(x, np.ndarray) and x.ndim and len(x) <= MOST_AT_ONCE:
            batch = {"x": self._array(x)}
            for transform in self._transforms:
                batch = transform(batch, [slice(0, len(x))], [])
            return meaning(self._computed(batch))
        source = self._source(x)
        everything = range(len(source))
        source.hold([everything])
        every = batches(source, everything, self.trained.job.data.batch_eval, self._transforms)
        return np.concatenate([meaning(self._computed(batch)) for batch in every])

    def _of_one(self, x: Any) -> Any:
        """Samples that consist of the single sample ``x``; None if it is several."""
        if isinstance(x, str):
            return [x] if self.trained.takes_text else None
        if isinstance(x, Mapping) and x and all(np.ndim(cell) == 0 for cell in x.values()):
            return {name: [cell] for name, cell in x.items()}
        if hasattr(x, "getexif") or self._is_row(x):
            return [x]
        is_array = hasattr(x, "shape") and hasattr(x, "dtype")
        return np.asarray(x)[None] if is_array and tuple(x.shape) == tuple(self._x.shape) else None

    def _is_row(self, x: Any) -> bool:
        """Whether ``x`` has one cell for each column of the table that the model was trained on."""
        is_list = isinstance(x, list | tuple)
        return is_list and len(x) == len(self._features) and all(np.ndim(cell) == 0 for cell in x) and len(x) > 0

    def _source(self, x: Any) -> Source:
        if isinstance(x, Source):
            return x
        if isinstance(x, Path) or (isinstance(x, str) and not self.trained.takes_text):
            return self.trained.open_inputs(str(x))
        if isinstance(x, list | tuple) and x and all(isinstance(one, Path) for one in x):
            return Concat([self._source(one) for one in x])
        shape_image = self.trained.known.shape_image
        if isinstance(x, list | tuple) and shape_image is not None and all(hasattr(one, "getexif") for one in x):
            x = [shape_image(one) for one in x]
        if isinstance(x, list | tuple) and x and all(map(self._is_row, x)):
            x = dict(zip(self._features, zip(*x, strict=True), strict=True))
        columns = _columns_of(x)
        if columns is not None:
            return self._table(columns)
        if self.trained.takes_text and len(x) and isinstance(x[0], str):
            return Arrays(self._texts(list(x)))
        return Arrays(self._array(np.asarray(x)))

    def _array(self, x: np.ndarray) -> np.ndarray:
        """Samples (rows, ...) as the model takes them, in a new array."""
        wanted = tuple(self._x.shape)
        if "categories" in self.trained.known.fields:
            raise UserError("an array lacks the categories that the model embeds: give samples as a dict of columns")
        if not x.ndim or x.shape[1:] != wanted:
            raise UserError(f"samples have the shape (rows, {', '.join(map(str, wanted))}), these are {x.shape}")
        if x.dtype.kind not in "biuf" or (self._x.dtype.kind in "iu" and x.dtype.kind == "f"):
            raise UserError(f"samples are of {self._x.dtype}, these of {x.dtype}")
        return x.astype(self._x.dtype)

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        encode = self.trained.encode
        assert encode is not None
        return np.stack([encode(text) for text in texts])

    def _table(self, columns: Mapping[str, Any]) -> Source:
        """A dict of columns, read as a CSV file of the same cells would be."""
        names = self._features
        if not names:
            raise UserError("the run was not trained on a table with named columns: give an array of samples")
        used = {name: columns[name] for name in names if name in columns}
        if alone := [name for name, column in used.items() if isinstance(column, str) or np.ndim(column) == 0]:
            raise UserError(
                f"{listed(map(repr, alone), 'and')}: one value, where the other columns have one for each row"
            )
        lengths = {name: len(column) for name, column in used.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"columns differ in length: {lengths}")
        if not used:
            raise UserError(f"the table has none of the columns {listed(map(repr, names), 'and')}")
        numeric = self.trained.known.numeric_columns
        used = {name: [_as_number(cell) for cell in used[name]] if name in numeric else used[name] for name in used}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "table.csv")
            _write_cells(path, used)
            try:
                source = self.trained.open_inputs(str(path), is_plain=True)
                source.hold([range(len(source))])
                fields: Any = source.gather(np.arange(len(source)))
                return Arrays(**fields)
            except DataError as error:
                raise UserError(str(error).replace(str(path), "the table")) from error

    def _computed(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """The output for one transformed batch."""
        trained = self.trained
        rows, state = len(batch["x"]), trained.state
        context = self._of_thread.context
        if context is None:
            context = self._of_thread.context = Context(seed=trained.job.run.seed, arena=Arena(state.device.xp))
        context.begin([slice(0, rows)], [0], 0)
        outputs = trained.model.predict(state.params.views, state.buffers, batch, context)
        output = np.array(host(next(iter(outputs.values()))))
        if trained.model.reconstructs and self._transforms:
            output = self._transforms[0].undo(output)
        return output


def _columns_of(x: Any) -> Mapping[str, Any] | None:
    """The columns of a dict, of a list of dicts, or of a table of pandas, polars or pyarrow; None for anything else."""
    if isinstance(x, Mapping):
        return x
    if isinstance(x, list | tuple) and x and all(isinstance(row, Mapping) for row in x):
        return {name: [row.get(name) for row in x] for name in dict.fromkeys(name for row in x for name in row)}
    names = getattr(x, "column_names", None) or getattr(x, "columns", None)
    return None if names is None or isinstance(x, np.ndarray) else {str(name): list(x[name]) for name in names}


def _write_cells(path: Path, columns: Mapping[str, Any]) -> None:
    """A plain CSV file of these cells; None, NaN and empty texts are missing."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(columns)
        out.writerows([_cell(cell) for cell in row] for row in zip(*columns.values()))


def _as_number(cell: Any) -> Any:
    """A truth value as 1 or 0, for a column that holds numbers in the training data; anything else as it is."""
    return int(cell) if isinstance(cell, bool | np.bool_) else cell


def _cell(cell: Any) -> Any:
    if isinstance(cell, np.datetime64):
        cell = cell.astype("datetime64[us]")  # finer ones would become whole numbers
    cell = cell.item() if isinstance(cell, np.generic) else cell.as_py() if hasattr(cell, "as_py") else cell
    # Not an empty cell: a row of nothing else would be a blank line. pandas' NA and NaT are missing by their names.
    is_missing = (
        cell is None or (isinstance(cell, float) and cell != cell) or (isinstance(cell, str) and not cell.strip())
    )
    return "NA" if is_missing else cell
