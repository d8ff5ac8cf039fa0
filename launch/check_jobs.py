"""Run the jobs of launch/jobs to the end and compare their results with the required ones, on several numbers of ranks.

    python launch/check_jobs.py                                all jobs on 1, 2 and 4 ranks: about an hour on two cores
    python launch/check_jobs.py cnn gan --ranks 2 --seeds 3    some of them, the median of three seeds
    python launch/check_jobs.py gan --run runs/gan             check an existing run

Prints one row for each job and number of ranks; the exit status is 1 if any falls short. The references (least squares,
PCA, a bag of words, gzip, a classifier of digits) share no code with ddl; the bag of words and the classifier that
checks the GAN come from scikit-learn. CI runs shortened forms of the jobs: tests/jobs."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Figure:
    """What a run reached. is_enough: whether required was met; note: what stands beside it."""

    reached: float
    required: float
    is_enough: bool
    note: str = ""


def samples_of(source: Any) -> dict[str, np.ndarray]:
    source.hold([range(len(source))])
    return source.gather(np.arange(len(source)))


def at_least(metric: str, required: float) -> Callable[[Path], Figure]:
    def judge(run: Path) -> Figure:
        reached = json.loads((run / "summary.json").read_text())["test"][metric]
        return Figure(reached, required, reached >= required, metric)

    return judge


def least_squares(run: Path) -> Figure:
    """The largest distance of a parameter from the least-squares solution, as a share of the largest parameter."""
    from ddl.run.trained import Trained

    trained = Trained.open(run)
    own = samples_of(trained.split("train"))
    for transform in trained.transforms:
        own = transform(own, [], [])
    x, y = own["x"].astype(np.float64), own["y"].astype(np.float64)
    best = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0].ravel()
    params = trained.state.params.views
    names = sorted(params, key=lambda name: name.endswith("bias"))
    found = np.concatenate([np.asarray(params[name], np.float64).ravel() for name in names])
    distance = np.abs(found - best).max()
    scale = max(1.0, np.abs(best[:-1]).max()) if trained.job.data.source == "diabetes" else 1.0
    return Figure(distance / scale, 1e-3, distance / scale <= 1e-3, "from numpy.linalg.lstsq")


def bag_of_words(run: Path) -> Figure:
    from ddl.run.trained import Trained

    trained = Trained.open(run)
    reached = json.loads((run / "summary.json").read_text())["test"]["accuracy"]
    texts = []
    for part in (trained.split("train"), trained.split("test")):
        # The classifier gets the whole lines, not what our tokeniser leaves of them.
        source: Any = part
        rows = source.indices
        texts.append(source.source.texts(rows))
    labels = [samples_of(part)["y"] for part in (trained.split("train"), trained.split("test"))]
    regression, majority = _regression(tuple(texts[0]), tuple(labels[0]), tuple(texts[1]), tuple(labels[1]))
    note = f"logistic regression {regression:.4f}, majority class {majority:.4f}"
    return Figure(reached, regression - 0.02, reached >= regression - 0.02, note)


@lru_cache(maxsize=8)
def _regression(texts: Any, labels: Any, held_texts: Any, held_labels: Any) -> tuple[float, float]:
    """(accuracy of scikit-learn's logistic regression on word counts, share of the majority class)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    count = CountVectorizer(token_pattern=r"(?u)[^\W\d_]+|\d+|[^\w\s]|_+")
    found = LogisticRegression(max_iter=1000).fit(count.fit_transform(texts), labels)
    right = found.predict(count.transform(held_texts)) == np.array(held_labels)
    return float(right.mean()), float(np.bincount(held_labels).max() / len(held_labels))


def gzip_of_each_file(run: Path) -> Figure:
    """Bits per byte of the model over the held-out files; it must beat gzip -9 on each of them, not only over all."""
    from ddl.data import generated
    from ddl.run.trained import Trained

    trained = Trained.open(run)
    window, limit = trained.known.fields["x"].shape[0], trained.job.data.options["limit_mib"]
    files = generated.stdlib_files(limit)["test"]
    ours, theirs, won = 0.0, 0.0, 0
    for path in files:
        text = path.read_bytes()
        bits, packed = bits_of(trained, text, window), 8.0 * len(gzip.compress(text, 9))
        ours, theirs, won = ours + bits, theirs + packed, won + (bits < packed)
    total = sum(path.stat().st_size for path in files)
    note = f"bits per byte, both over all; gzip -9 beaten on {won} of {len(files)} files"
    return Figure(ours / total, theirs / total, won == len(files), note)


def bits_of(trained: Any, text: bytes, window: int) -> float:
    """Bits in which the model writes ``text``: every byte once, each from at least half a window if there is one."""
    from ddl.nn import Context

    stream = np.frombuffer(b"\0" + text, np.uint8).astype(np.int64)
    half = window // 2
    x, y = stream[:-1], stream[1:]
    starts = [0, *range(half, max(len(x) - half, half), half)]
    rows, wanted = [], []
    for start in starts:
        row, target = np.zeros(window, np.int64), np.full(window, -1, np.int64)
        piece = slice(start, start + window)
        row[: len(x[piece])] = x[piece]
        first = 0 if start == 0 else half
        target[first : len(y[piece])] = y[piece][first:]
        rows.append(row)
        wanted.append(target)
    assert sum(int((target >= 0).sum()) for target in wanted) == len(text)
    nats = 0.0
    for at in range(0, len(rows), 16):
        batch, truth = np.stack(rows[at : at + 16]), np.stack(wanted[at : at + 16])
        context = Context(segments=[slice(0, len(batch))], shards=[0])
        scores = trained.model.predict(trained.state.params.views, trained.state.averages.views, {"x": batch}, context)
        logits = np.asarray(scores["output"], np.float64)
        logits -= logits.max(axis=2, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
        counted = truth >= 0
        nats -= np.take_along_axis(logits, np.maximum(truth, 0)[..., None], axis=2)[..., 0][counted].sum()
    return float(nats / np.log(2))


def principal_components(run: Path) -> Figure:
    from ddl.run.trained import Trained

    trained = Trained.open(run)
    parts = []
    for part in (trained.split("train"), trained.split("test")):
        own = samples_of(part)
        for transform in trained.transforms:
            own = transform(own, [], [])
        parts.append(own["x"].reshape(len(own["x"]), -1).astype(np.float64))
    mean = parts[0].mean(axis=0)
    code = trained.job.model.options["code"]
    axes = np.linalg.svd(parts[0] - mean, full_matrices=False)[2][:code]
    held = parts[1] - mean
    error = float(np.square(held - held @ axes.T @ axes).mean())
    reached = json.loads((run / "summary.json").read_text())["test"]["loss"]
    return Figure(reached, error, reached < error, f"mean squared error; PCA of width {code}")


def ten_digits(run: Path) -> Figure:
    """The share of the most frequent class among 1,000 samples, as a classifier of real digits sees them."""
    from sklearn.svm import SVC

    from ddl.data import digits
    from ddl.run.trained import Trained

    real = samples_of(digits())
    judge = SVC(gamma=0.001, C=10).fit(real["x"].reshape(-1, 64).astype(np.float64), real["y"])
    drawn = Trained.open(run).draw(1000, seed=1).reshape(-1, 64)
    counts = np.bincount(judge.predict(drawn), minlength=10)
    share = counts.max() / 1000
    note = f"largest share of a class; {np.count_nonzero(counts)} classes, the rarest {counts.min()} of 1,000"
    return Figure(share, 0.30, bool((counts > 0).all() and share <= 0.30), note)


# row of the table -> (job, further settings, judge)
ROWS: dict[str, tuple[str, tuple[str, ...], Callable[[Path], Figure]]] = {
    "linear": ("linear", (), least_squares),
    "linear, 3 inputs": ("linear", ("--data.options.weights=[3.0, -1.0, 0.5]",), least_squares),
    "diabetes": ("diabetes", (), least_squares),
    "mlp": ("mlp", (), at_least("accuracy", 0.97)),
    "cnn": ("cnn", (), at_least("accuracy", 0.985)),
    "rnn": ("rnn", (), at_least("accuracy", 0.94)),
    "lstm_digits": ("lstm_digits", (), at_least("accuracy", 0.97)),
    "lstm_digits, GRU": ("lstm_digits", ("--model.name=gru",), at_least("accuracy", 0.97)),
    "lstm": ("lstm", (), bag_of_words),
    "gru": ("gru", (), bag_of_words),
    "text": ("text", (), bag_of_words),
    "transformer": ("transformer", (), gzip_of_each_file),
    "transformer_classifier": ("transformer_classifier", (), bag_of_words),
    "autoencoder": ("autoencoder", (), principal_components),
    "autoencoder_conv": ("autoencoder_conv", (), principal_components),
    "gan": ("gan", (), ten_digits),
    "stages": ("stages", (), at_least("accuracy", 0.97)),
    "pruning": ("pruning", (), at_least("accuracy", 0.965)),
    "local": ("local", (), at_least("accuracy", 0.96)),
    "balance": ("balance", (), at_least("accuracy", 0.97)),
}


def train(row: str, ranks: int, seed: int, folder: Path) -> float:
    """Run a job; seconds that it took. Raises SystemExit when it failed."""
    from ddl.launcher.mpirun import find_mpirun

    job, words, _ = ROWS[row]
    known = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [find_mpirun(), "-n", str(ranks), "--map-by", ":oversubscribe", sys.executable, "-m", "ddl.train"]
    if row == "stages" and ranks % 2:
        words = (*words, "--parallel.stages=1")  # the same network whole
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    began = time.monotonic()
    fixed = [f"--run.dir={folder}", f"--run.seed={seed}", "--metrics.console_every_s=0"]
    done = subprocess.run(
        [*command, str(ROOT / "launch" / "jobs" / f"{job}.toml"), *fixed, *words],
        env={**os.environ, **known, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise SystemExit(f"{row} on {ranks} ranks ended with status {done.returncode}:\n{said}")
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="Run jobs whole and compare what they reach with what they must.")
    parser.add_argument("rows", nargs="*", help=f"some of: {'; '.join(ROWS)}. Default: all")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=1, help="how many; the median counts")
    parser.add_argument("--run", type=Path, help="judge this run of the one row named, and train nothing")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.rows) - set(ROWS)):
        parser.error(f"there is no {unknown}; there are {list(ROWS)}")
    rows = arguments.rows or list(ROWS)
    if arguments.run is not None:
        found = ROWS[rows[0]][2](arguments.run)
        print(f"{rows[0]}: reached {found.reached:.5g}, required {found.required:.5g} ({found.note})")
        return 0 if found.is_enough else 1
    print(f"{'job':24} {'ranks':>5} {'reached':>10} {'required':>10} {'seconds':>8}   note", flush=True)
    good = True
    for row in rows:
        for ranks in arguments.ranks:
            figures, seconds = [], []
            for seed in range(arguments.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    seconds.append(train(row, ranks, seed, Path(folder) / "run"))
                    figures.append(ROWS[row][2](Path(folder) / "run"))
            # The run in the middle: its own figure is compared with its own requirement.
            middle = sorted(figures, key=lambda f: f.reached - f.required)[(len(figures) - 1) // 2]
            good = good and middle.is_enough
            verdict = "" if middle.is_enough else "FALLS SHORT  "
            took = statistics.median(seconds)
            figures_of = f"{middle.reached:10.5g} {middle.required:10.5g} {took:8.1f}"
            print(f"{row:24} {ranks:5} {figures_of}   {verdict}{middle.note}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
