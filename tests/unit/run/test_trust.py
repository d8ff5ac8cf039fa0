"""A finished run may be another user's: code that its files name runs only with ``--trust``."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

import ddl
from ddl import audit, evaluate, predict
from ddl.config import Job, load, override, read, write
from ddl.config.trust import NAMING
from ddl.errors import ConfigError
from ddl.registry import resolve
from ddl.train.__main__ import main as train

QUIET = ("--metrics.console_every_s=0", "--fault.tolerance=off", "--data.prefetch=0", "--train.steps=2")
SMALL = ("--model.name=mlp", "--model.options.hidden=[4]")
POISON = {"model.name": "strange:net", "data.source": "strange:rows", "model.metrics": ["accuracy", "os:getpid"]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run whose config.toml names a module of the current folder, which leaves a file when imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "strange", raising=False)
    assert train([*QUIET, *SMALL, "--run.dir=run"]) == 0
    config = tmp_path / "run" / "config.toml"
    write(override(read(config), POISON), config)
    (tmp_path / "strange.py").write_text(
        "import pathlib\n"
        "from ddl.data import digits as rows\n"
        "from ddl.models.zoo import mlp as net\n"
        "pathlib.Path('ran').touch()\n"
    )
    np.save("x.npy", np.zeros((3, 8, 8, 1), np.float32))
    return tmp_path


@pytest.mark.parametrize("door", [evaluate, predict])
def test_a_run_that_names_code_is_opened_only_with_trust(run, door, capsys):
    words = ["run"] if door is evaluate else ["run", "--input", "x.npy", "--output", "y.npy"]
    capsys.readouterr()
    assert door.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for name in ("data.source = 'strange:rows'", "model.name = 'strange:net'", "model.metrics = 'os:getpid'"):
        assert name in line
    assert not (run / "ran").exists()
    config = run / "run" / "config.toml"
    write(override(read(config), {"model.metrics": ["accuracy"]}), config)
    assert door.main([*words, "--trust"]) == 0
    assert (run / "ran").exists()


def test_auditing_resuming_and_starting_from_a_run_execute_nothing_of_it(run):
    assert audit.main(["run"]) == 0
    assert train([*QUIET, *SMALL, "--run.dir=run", "--train.steps=3"]) == 0
    assert train([*QUIET, *SMALL, "--run.dir=other", "--model.from=run"]) == 0
    x, y = np.zeros((80, 64), np.float32), np.arange(80) % 10
    settings = {"metrics.console_every_s": 0.0, "fault.tolerance": "off", "model.from": "run", "run.dir": "third"}
    ddl.Trainer(ddl.models.MLP([64, 4, 10]), (x, y), settings={**settings, "model.strict": False}).fit(steps=1)
    assert not (run / "ran").exists()


def test_the_config_of_another_users_run_is_a_job_only_with_trust(run, monkeypatch):
    config = run / "run" / "config.toml"
    load([str(config)])  # this user's run
    if os.geteuid() == 0:
        os.chown(config, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: config.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=r"of another user's run, names code to run: data\.source = 'strange:rows'"):
        load([str(config)])
    assert load([str(config), "--trust"]).model.name == "strange:net"
    plain = {"model.name": "mlp", "data.source": "digits", "model.metrics": ["auto"]}
    write(override(read(config), plain), config)
    assert load([str(config), "--data.source=strange:rows"]).data.source == "strange:rows"  # the user's own word


@pytest.mark.parametrize("name", [".strange:net", "strange:1", "strange:", ":net", "strange:net()", "..strange:net"])
def test_only_a_whole_module_and_name_is_imported(name, run):
    with pytest.raises(ConfigError, match=r"package\.module:Name"):
        resolve(name, {}, "model.name")
    assert not (run / "ran").exists()


def test_every_setting_that_can_name_code_is_looked_at(trees):
    named = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "resolve":
                named |= {a.value for a in node.args if isinstance(a, ast.Constant) and "." in str(a.value)}
    assert named == set(NAMING) - {"optim.groups"}  # whose tables name what optim.name may
    assert {name.split(".")[0] for name in NAMING} <= {field.name for field in fields(Job)}


def test_a_verb_imports_nothing_from_the_current_folder(run):
    """Inside another user's run folder, a file called like a module of ddl's needs stays unread."""
    (run / "numpy.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    (run / "bin").mkdir()
    (run / "bin" / "ddl").write_text("from ddl.__main__ import main\nraise SystemExit(main())\n")
    done = subprocess.run(
        [sys.executable, run / "bin" / "ddl", "audit", "run"], cwd=run, capture_output=True, text=True
    )
    assert done.returncode == 0 and "exact" in done.stdout, done.stderr
    assert not (run / "ran").exists()
