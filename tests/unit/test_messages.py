"""Messages are English: names are a phrase in them, never as a Python list, dictionary or object."""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from ddl import elastic
from ddl.arrays import FlatBuffer, Layout
from ddl.config import Job, override
from ddl.data import Arrays, open_dataset
from ddl.data.split import random_split
from ddl.errors import DdlError
from ddl.fault.inject import parse
from ddl.models import MLP
from ddl.models import build as build_model
from ddl.nn import Dense
from ddl.optim import Adam, Groups, Rule, schedule
from ddl.optim import build as build_optimizer
from ddl.parallel.buckets import buckets
from ddl.registry import instantiate, resolve

# Lists, dictionaries, sets and reprs of objects; shapes are tuples of numbers, and look in Python as users write them.
PYTHON = re.compile(r"\[['\"\]]|\{['\"}]|\(['\"]|dict_|set\(|<class|<function| object at |(array|dtype|Path|np\.\w+)\(")
X = np.zeros((4, 2))


def files(train, test):
    Path("train.csv").write_text(train)
    Path("test.csv").write_text(test)
    return open_dataset("files", path="train.csv", validation=0.0, test="test.csv")


def parts(train, **more):
    sys.modules["mine"] = types.SimpleNamespace(parts=lambda: {**({"train": train} if train else {}), **more})
    return open_dataset("mine:parts")


LAYOUT = Layout.of({"w": (2, 3), "b": (3,)})
PROVOKED = {
    "an optimizer's name": lambda: build_optimizer("adamm"),
    "an optimizer that is like no other": lambda: build_optimizer("xyz"),
    "an optimizer's options": lambda: build_optimizer("momentum", {"decoy": 1, "beta": 2}),
    "a schedule": lambda: schedule("cosin", 10),
    "a rule": lambda: Groups(LAYOUT, Adam(), [Rule("nothing", Adam())]),
    "settings": lambda: override(Job(), {"optim.name": "adm", "train.stepz": 3, "comm": 1, "data.x": []}),
    "lengths": lambda: Arrays(X, np.zeros(3)),
    "no training part": lambda: parts(None, test=Arrays(X, X), validation=Arrays(X, X)),
    "fractions": lambda: random_split(4, (0.5, 0.2), 1),
    "fields": lambda: build_model("mlp", {"y": Arrays(X, X).fields["y"]}, None, None),
    "options of an object": lambda: build_model(Dense(2), Arrays(X, X).fields, "mse", None, {"hidden": 3, "a": 1}),
    "sizes": lambda: MLP([3]),
    "too many values": lambda: instantiate(lambda one: one, {}, "this", 1, 2, 3),
    "a name of a registry": lambda: resolve("mp", {"mlp": MLP, "cnn": MLP}, "model.name"),
    "names of arrays": lambda: FlatBuffer(LAYOUT).assign({"v": X}),
    "the order of buckets": lambda: buckets(LAYOUT, 100, ["w", "w"]),
    "an elastic state": lambda: elastic.State(step=0, loss=1.0).other,
    "columns": lambda: files("a,b,y\n1,2,0\n3,4,1\n", "p,b,y\n1,2,0\n"),
    "a fault": lambda: parse("kil rank 1 at step 3 point job.gathr", ranks=2),
}


@pytest.mark.parametrize("what", PROVOKED)
def test_an_error_names_things_in_english(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DdlError, ValueError, AttributeError)) as error:
        PROVOKED[what]()
    assert not PYTHON.search(str(error.value)), error.value


def test_no_message_in_the_package_formats_a_list(trees):
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FormattedValue) and is_collection(node.value):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node.value)}")
    assert not found


def is_collection(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in ("sorted", "list", "set", "dict", "frozenset")
    return isinstance(value, ast.List | ast.Set | ast.Dict | ast.ListComp | ast.SetComp | ast.DictComp)
