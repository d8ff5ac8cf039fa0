"""Jobs that cannot be, really started: each ends with one line, status 2, and nothing written or altered.

The settings' own mistakes are tested one by one in tests/unit/config, the formats' in tests/unit/data."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 100
SHORT = ("--train.steps=2", "--metrics.console_every_s=0", "--train.compiled=off", "--model.name=mlp")
FILES = ("--data.source=files", "--data.stratify=false")

# name of the case: (words, what the line says)
BAD = {
    # settings
    "a section that there is not": (["--optmi.lr", "1"], "no section [optmi]"),
    "a setting that there is not": (["--train.step=2"], "[train] has no setting 'step'; did you mean 'steps'?"),
    "text for a number": (["--optim.lr", "fast"], "[optim] lr is fast: it must be a number"),
    "a batch of no samples": (["--train.global_batch=0"], "[train] global_batch is 0"),
    "nothing left to train on": (["--data.validation=0.6", "--data.test=0.5"], "nothing is left to train on"),
    "more shards than a step has samples": (["--data.shards=100"], "[data] shards is 100"),
    "spares alone": (["--fault.spares=1"], "[fault] spares is 1, but only 1 rank was started"),
    "a job file that there is not": (["nowhere.toml"], "there is no job file nowhere.toml"),
    "a job file that is not TOML": (["broken.toml"], "broken.toml is not TOML"),
    "a job file with a mistyped section": (["mistyped.toml"], "no section [trian]"),
    "tolerance that cannot be had": (["--fault.tolerance=on"], "fault.tolerance is on, but a death would not be"),
    "faults that cannot be read": (["--fault.chaos=explode rank 1"], 'fault.chaos: cannot read "explode rank 1"'),
    "a group that matches nothing": (["--optim.groups", '[{match = "no*"}]'], "no parameter matches 'no*'"),
    "a group with a mistyped setting": (
        ["--optim.groups", '[{match = "*", lrr = 1}]'],
        "no setting 'lrr'; did you",
    ),
    "freezing parameters that do not exist": (["--model.freeze", "no*"], "no parameter matches 'no*'"),
    # names in the settings, and the user's own code
    "an unknown model": (["--model.name=cnm"], "model.name = 'cnm' is unknown; did you mean 'cnn'?"),
    "an unknown loss": (
        ["--model.loss=crossentropy"],
        "'crossentropy' is unknown; did you mean 'cross_entropy'?",
    ),
    "an unknown metric": (
        ["--model.metrics=exactness"],
        "'exactness' is unknown; known are accuracy, ",
    ),
    "an unknown optimizer": (["--optim.name=adamm"], "optim.name = 'adamm' is unknown; did you mean 'adam'?"),
    "an unknown augmentation": (["--data.augment=shake"], "data.augment = 'shake' is unknown; known are "),
    "an option that the model has not": (
        ["--model.options.hiden=[8]"],
        "model 'mlp' has no option 'hiden'; did you mean 'hidden'?",
    ),
    "a model of a module that there is not": (["--model.name=nowhere.at:All"], "'nowhere.at:All' cannot be found"),
    "a model that the module has not": (["--model.name=json:Net"], "module 'json' has no attribute 'Net'"),
    "a callback that there is not": (["--train.callbacks=json:nothing"], "module 'json' has no attribute 'nothing'"),
    "a source that there is not": (["--data.source=digit"], "data.source = 'digit' is unknown; did you mean 'digits'?"),
    "another package's name of a metric": (["--model.metrics=acc"], "did you mean 'accuracy'?"),
    "a capital letter": (["--optim.name=Adam"], "optim.name = 'Adam' is unknown; did you mean 'adam'?"),
    "another package's model": (["--model.name=resnet50"], "model.name = 'resnet50' is unknown; did you mean 'cnn'?"),
    "files in the singular": (["--data.source=file"], "data.source = 'file' is unknown; did you mean 'files'?"),
    # files
    "a file that there is not": ([*FILES, "--data.path=nowhere.npz"], "[data] path: there is no"),
    "an empty file": ([*FILES, "--data.path=empty.npz"], "empty.npz, byte 0: the file is empty"),
    "a truncated .npz": ([*FILES, "--data.path=cut.npz"], "cut.npz: not a whole .npz file"),
    "a truncated .npy": ([*FILES, "--data.path=cut.npy", "--data.targets=y.npy"], "cut.npy, byte 968: truncated"),
    "a truncated IDX file": (
        [*FILES, "--data.path=cut-images-idx3-ubyte", "--data.targets=labels-idx1-ubyte"],
        "cut-images-idx3-ubyte, byte 3756: truncated",
    ),
    "labels of other samples": (
        [*FILES, "--data.path=images-idx3-ubyte", "--data.targets=few-idx1-ubyte"],
        "few-idx1-ubyte: 50 targets for the 60 samples of",
    ),
    "arrays of different length": ([*FILES, "--data.path=short.npz"], "50 targets for the 60 samples"),
    "no targets": ([*FILES, "--data.path=x.npy"], "model 'mlp' needs targets"),
    "pickled objects": ([*FILES, "--data.path=pickled.npz"], "only pickle can read: refused"),
    "a ragged line": ([*FILES, "--data.path=ragged.csv", "--data.targets=y"], "ragged.csv, line 3: 2 columns where"),
    "a column that there is not": ([*FILES, "--data.path=ragged.csv", "--data.targets=z"], "line 1: no column 'z'"),
    "an unknown format": ([*FILES, "--data.path=x.npy", "--data.format=zip"], "no format is called 'zip'"),
    # folders
    "a run folder that cannot be made": (["--run.dir=x.npy/run"], "run.dir = 'x.npy/run' cannot be used"),
    "a run folder that is a file": (["--run.dir=x.npy"], "[run] dir: x.npy is not a folder"),
    "a finished run that must not be resumed": (["--run.dir=run", "--checkpoint.resume=none"], "holds a run already"),
    "another seed than the checkpoint's": (["--run.dir=run", "--run.seed=3"], "was made with seed = 0, this job has 3"),
    "another batch than the checkpoint's": (["--run.dir=run", "--train.global_batch=32"], "this job has"),
    "another model than the checkpoint's": (["--run.dir=run", "--model.options.hidden=[8]"], "does not fit this model"),
    "other data than the checkpoint's": (["--run.dir=run", "--data.test=0.5"], "was made with s"),
    "another optimizer than the checkpoint's": (["--run.dir=run", "--optim.name=sgd"], "does not fit"),
    "a checkpoint that is none": (["--checkpoint.resume=x.npy"], "checkpoint.resume = "),
    "a model to start from that is another": (["--model.from=run", "--model.options.hidden=[8]"], "model.from = "),
}
# What only the rank that holds the sample can see ends a run that has begun: its summary says so.
BAD_SAMPLES = {
    "a value that is not finite": (["--data.path=nan.npz"], "nan.npz, sample 7: a value that is not finite"),
    "a word for a number": (
        ["--data.path=words.csv", "--data.targets=y", "--data.validation=0", "--data.test=0"],
        "words.csv, line 3: 'x' in column 'b'",
    ),
}
UNDER_MPIRUN = {
    "a mistyped setting": (["--train.step=2"], "[train] has no setting 'step'"),
    "fewer shards than ranks": (["--data.shards=1"], "[data] shards is 1, but 2 ranks were started"),
    "a truncated file": ([*FILES, "--data.path=cut.npz"], "cut.npz: not a whole .npz file"),
    "a checkpoint of another job": (["--run.dir=run", "--run.seed=3"], "was made with seed = 0, this job has 3"),
    "a sample of one rank's": ([*FILES, "--data.path=nan.npz", "--run.dir=NEW"], "nan.npz, sample 7"),
}


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of all kinds of badness, and ``run``: a good run of two steps."""
    folder = tmp_path_factory.mktemp("bad")
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    holed = x.copy()
    holed[7, 2] = np.nan
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.savez(folder / "good.npz", x=x, y=y)
    np.savez(folder / "short.npz", x=x, y=y[:50])
    np.savez(folder / "nan.npz", x=holed, y=y)
    np.savez(folder / "pickled.npz", x=np.array([{}] * 60, dtype=object), y=y)
    whole = (folder / "good.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.npy").write_bytes((folder / "x.npy").read_bytes()[:-120])
    (folder / "empty.npz").touch()
    images, labels = random.integers(0, 255, (60, 8, 8), "uint8"), random.integers(0, 3, 60, "uint8")
    (folder / "images-idx3-ubyte").write_bytes(idx(images))
    (folder / "labels-idx1-ubyte").write_bytes(idx(labels))
    (folder / "few-idx1-ubyte").write_bytes(idx(labels[:50]))
    (folder / "cut-images-idx3-ubyte").write_bytes(idx(images)[:-100])
    (folder / "ragged.csv").write_text("a,b,y\n1,2,0\n1,2\n3,4,1\n")
    (folder / "words.csv").write_text("a,b,y\n1,2,0\n1,x,1\n3,4,1\n")
    (folder / "broken.toml").write_text("[train\nsteps = 1\n")
    (folder / "mistyped.toml").write_text("[trian]\nsteps = 1\n")
    done = train(folder, "--run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder


def train(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*launcher, sys.executable, "-m", "ddl.train", *SHORT, *words]
    names = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environ = {name: value for name, value in names.items() if not name.startswith(("OMPI_COMM", "PMIX_", "SLURM_"))}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=LIMIT_S)


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder, and what is in it."""
    paths = sorted(folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}


@pytest.fixture(scope="module")
def before(folder) -> dict[str, str]:
    return contents(folder)


@pytest.fixture(scope="module")
def ended(folder, before) -> dict[str, subprocess.CompletedProcess[str]]:
    """All of BAD, two at a time: starting Python takes longer than what is tested."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(BAD, pool.map(lambda case: train(folder, *BAD[case][0]), BAD), strict=True))


@pytest.mark.parametrize("case", BAD)
def test_a_job_that_cannot_be_ends_with_one_line_and_status_2(case, ended):
    done, expected = ended[case], BAD[case][1]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("ddl.train: ") and expected in lines[0]
    assert done.stdout == ""


def test_none_of_them_wrote_or_altered_anything(ended, folder, before):
    assert contents(folder) == before


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_refused_before_there_is_a_run_folder(case, folder, tmp_path):
    words, expected = BAD_SAMPLES[case]
    done = train(folder, *FILES, *words, f"--run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and expected in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_the_good_run_is_still_good_after_all_of_them(ended, folder):
    command = [sys.executable, "-m", "ddl.evaluate", "run"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path")
@pytest.mark.parametrize("case", UNDER_MPIRUN)
@pytest.mark.parametrize("flags", [(), ("--with-ft", "ulfm")], ids=["plain", "ulfm"])
def test_under_mpirun_the_line_is_printed_once_and_every_rank_has_status_2(case, flags, folder, tmp_path):
    words, expected = UNDER_MPIRUN[case]
    words = [word.replace("NEW", str(tmp_path / "new")) for word in words]
    # mpirun's own status proves nothing where deaths are survived, so each rank prints its own.
    shell = ("bash", "-c", '"$0" "$@"; echo "status $?"')
    done = train(folder, *words, launcher=("mpirun", *flags, "-n", "2", *shell))
    assert done.stdout.split() == ["status", "2"] * 2, done.stdout + done.stderr
    assert done.stderr.count("ddl.train: ") == 1 and expected in done.stderr and "Traceback" not in done.stderr


LATE = """
import os, sys, time
if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
    time.sleep(0.7)
sys.argv[1:] = {words!r}
from ddl.{door} import main
raise SystemExit(main())
"""


@pytest.mark.parametrize(
    ("door", "words"),
    [
        ("train.__main__", ["--optim.lr", "fast"]),
        ("train.__main__", ["--data.shards=2", "--train.global_batch=8"]),
        ("predict", ["--inptu", "x"]),
    ],
)
def test_the_line_is_printed_even_if_rank_0_is_the_last_to_find_the_error(tmp_path, door, words):
    """mpirun ends all ranks when the first has ended with a status, and what rank 0 has not said by then is lost."""
    (tmp_path / "late.py").write_text(LATE.format(words=words, door=door))
    done = subprocess.run(
        ["mpirun", "-n", "3", sys.executable, "late.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 2 and done.stderr.count("ddl.") == 1, done.stderr
