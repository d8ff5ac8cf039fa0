"""One noun names one thing: no two classes of ddl share a name."""

from __future__ import annotations

import ast
from collections import defaultdict

# Public names that users import keep theirs: each is always written with its module.
ALLOWED = {
    # The protocol, and its implementations for PyTorch modules and JAX functions.
    "Model": {"models/model.py", "torch/model.py", "jax/model.py"},
    # What a commit saves: of a loop that calls ddl.elastic, and of one in PyTorch.
    "State": {"elastic/state.py", "torch/state.py"},
}


def test_no_two_classes_share_a_name(trees):
    defined = defaultdict(list)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                defined[node.name].append(name)
    shared = {name: paths for name, paths in defined.items() if len(paths) > 1}
    assert {name: set(paths) for name, paths in shared.items()} == ALLOWED
    assert all(len(paths) == len(ALLOWED[name]) for name, paths in shared.items())
