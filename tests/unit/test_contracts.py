"""Contracts are complete: no object is asked which members it has, and no model class is special."""

import ast
import importlib

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
    "nn/metric.py",  # the name of a function that the user wrote
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


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_only_foreign_objects_are_asked_which_members_they_have(trees):
    def probes(call: ast.Call) -> bool:
        function = ast.unparse(call.func)
        return function == "hasattr" or (function == "getattr" and len(call.args) == 3)

    assert {name for name, tree in trees.items() if any(map(probes, calls(tree)))} == PROBES


def test_no_kind_of_model_is_treated_specially_outside_its_room(trees):
    kinds = {"Supervised", "GAN", "Measured"}
    found = set()
    for name, tree in trees.items():
        for call in calls(tree):
            if ast.unparse(call.func) in ("isinstance", "issubclass", "type"):
                found |= {name for node in ast.walk(call) if isinstance(node, ast.Name) and node.id in kinds}
    # The bench puts its own network into one; a teacher's loss, the stages of a network and its smaller forms need its
    # layers and loss.
    allowed = {"compress/channels.py", "compress/int8.py", "bench/models.py", "train/teacher.py", "pipeline/network.py"}
    assert {name for name in found if not name.startswith("models/")} == allowed


def test_every_public_name_of_a_package_exists(trees):
    def public(tree: ast.Module) -> set[str]:
        lists = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        return {name for found in lists for name in ast.literal_eval(found)}

    missing = {}
    for name, tree in trees.items():
        if name.endswith("__init__.py") and name.split("/")[0] not in ("torch", "jax"):  # extras
            package = importlib.import_module(".".join(["ddl", *name.split("/")[:-1]]))
            if lacking := {word for word in public(tree) if not hasattr(package, word)}:
                missing[name] = lacking
    assert missing == {}
