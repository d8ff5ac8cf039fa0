"""What keeps the code easy to follow: one class per name, no probing for members, no model class special-cased."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ddl"

# Classes that share their name, each for a reason.
SAME_NAME = {
    "Model": {"models/model.py", "torch/model.py", "jax/model.py"},  # the contract, and its adapters
    "State": {"elastic/state.py", "torch/state.py"},  # the second is the first for a module and its optimizer
}
# Where an object may be asked which members it has: it belongs to the user, to another package or to the system.
PROBES = {
    "registry.py",  # adapts objects of the user to a contract, and names type hints
    "data/source.py",  # adapts sources of the user
    "data/memory.py",  # tables and columns of pandas, polars and pyarrow
    "data/tables/arrow_reader.py",  # types of pyarrow
    "data/tables/text.py",  # streams of the standard library
    "data/formats/image_labels.py",  # errors of the system
    "models/build.py",  # models, networks and metrics of the user
    "models/layers.py",  # names that may be no layer
    "nn/metric.py",  # the name of the user's function
    "metrics/jsonl.py",  # arrays of any package
    "run/loaded.py",  # samples of any package
    "run/record.py",  # optimizers of the user
    "run/trainer.py",  # schedulers of other frameworks
    "kernels/backend.py",  # versions of a kernel that a module need not have
    "comm/topology.py",  # functions that a system need not have
    "launcher/cores.py",
    "torch/allocator.py",
    "torch/data.py",  # datasets, optimizers and schedulers of PyTorch
    "torch/optimizers.py",
    "torch/stepped.py",
    "torch/trees.py",
}


@cache
def trees() -> dict[str, ast.Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_two_classes_share_a_name():
    found = defaultdict(set)
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(name)
    assert {name: files for name, files in found.items() if len(files) > 1} == SAME_NAME


def test_only_foreign_objects_are_asked_which_members_they_have():
    def probes(call: ast.Call) -> bool:
        function = ast.unparse(call.func)
        return function == "hasattr" or (function == "getattr" and len(call.args) == 3)

    assert {name for name, tree in trees().items() if any(map(probes, calls(tree)))} == PROBES


def test_no_kind_of_model_is_treated_specially_outside_its_room():
    kinds = {"Supervised", "GAN", "Measured"}
    found = set()
    for name, tree in trees().items():
        for call in calls(tree):
            if ast.unparse(call.func) in ("isinstance", "issubclass", "type"):
                found |= {name for node in ast.walk(call) if isinstance(node, ast.Name) and node.id in kinds}
    assert {name for name in found if not name.startswith("models/")} == {"bench/models.py"}  # its own network in it
