"""``--data.path table.csv --data.targets y`` without any other setting is as accurate as scikit-learn."""

import csv
import json
import os
import signal
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from ddl.data import open_dataset

datasets = pytest.importorskip("sklearn.datasets")


def messy():
    path = Path(__file__).parents[1] / "unit" / "data" / "messy.py"
    spec = spec_from_file_location("messy", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundled(path, name):
    data = getattr(datasets, f"load_{name}")()
    names = getattr(data, "target_names", None)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "y"])
        rows = zip(data.data.tolist(), data.target.tolist(), strict=True)
        writer.writerows([*x, y if names is None else names[y]] for x, y in rows)


def trained(path, targets, folder):
    """The run's accuracy on its test split, or its r2 if the targets are values."""
    command = [sys.executable, "-m", "ddl.train", "--data.path", path, "--data.targets", targets, "--run.dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    test = json.loads((folder / "summary.json").read_text())["test"]
    return test.get("accuracy", test.get("r2"))


def reference(path, targets):
    """(the better of a linear model and an MLP, number of test samples), with the same training samples."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    splits, parts = open_dataset("files", path=str(path), targets=targets, dtype="float64"), []
    for part in (splits.train, splits.test):
        part.hold([range(len(part))])
        parts.append(part.gather(np.arange(len(part))))
    train, test = parts
    models = (LogisticRegression(max_iter=500), MLPClassifier(max_iter=200, random_state=0))
    if train["y"].dtype.kind == "f":
        mlp = MLPRegressor(max_iter=500, random_state=0)
        models = (Ridge(), TransformedTargetRegressor(mlp, transformer=StandardScaler()))
    made = [make_pipeline(StandardScaler(), model).fit(train["x"], train["y"].ravel()) for model in models]
    return max(model.score(test["x"], test["y"].ravel()) for model in made), len(test["y"])


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits", "diabetes", "customers.csv"])
def test_a_table_trains_as_accurately_as_scikit_learn_without_a_setting(tmp_path, name):
    path, targets = tmp_path / f"{name.partition('.')[0]}.csv", "y"
    if name == "customers.csv":
        make, targets = messy().FILES[name]
        make(path)
    else:
        bundled(path, name)
    best, samples = reference(path, targets)
    # Within 2 points, or one sample of the test split
    assert trained(path, targets, tmp_path / "run") >= best - max(0.02, 1 / samples) - 1e-9


CONVERTING = """
import os, signal, sys, time
from ddl.data import open_dataset
from ddl.data.tables import convert, store, text

store.CACHED_FROM, convert.PART_CELLS, text.PIECE_BYTES = 0, 3000, 10_000
begun = sys.argv[1] + ".begun"
if sys.argv[2] == "dies":
    def die(share, part, found):
        open(begun, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    store.Share.end = die
else:
    deadline = time.monotonic() + 60
    while not os.path.exists(begun) and time.monotonic() < deadline:
        time.sleep(0.01)
train = open_dataset("files", path=sys.argv[1], validation=0.0, test=0.0).train
train.hold([range(len(train))])
import numpy as np
print(len(train), int(train.gather(np.arange(len(train)))["x"].sum(dtype="float64")))
"""


def test_a_process_that_dies_while_a_table_is_converted_leaves_its_part_to_the_others(tmp_path):
    path, rows = tmp_path / "a.csv", 40_000
    path.write_text("p,q,y\n" + "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(rows)))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", CONVERTING, str(path)]
    started = [
        subprocess.Popen([*command, how], stdout=subprocess.PIPE, text=True, env=environment)
        for how in ("dies", "lives", "lives")
    ]
    answers = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [-signal.SIGKILL, 0, 0]
    wanted = f"{rows} {sum(range(rows)) + sum(i % 7 for i in range(rows))}\n"
    assert answers[1:] == [wanted] * 2
