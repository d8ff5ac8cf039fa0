"""The choice of an algorithm depends only on its arguments, so all ranks make the same one."""

import pytest

from ddl.collectives import TABLE, Topology, Tuning, choose
from ddl.collectives.choose import TuningRule
from ddl.errors import UserError

NODE = Topology((4,), can_share=True)
CLUSTER = Topology((2, 2), can_share=True)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("nbytes", "topology", "expected"),
    [
        (16, NODE, "native"),
        (MIB, NODE, "shared"),
        (MIB, Topology((4,), can_share=False), "native"),
        (16 * MIB, Topology((4,), can_share=False), "ring"),
        (MIB, CLUSTER, "hierarchical"),
        (MIB, Topology((1, 1), can_share=True), "ring"),
        (MIB, Topology((2, 2), can_share=False), "ring"),
        (16 << 10, CLUSTER, "native"),
        (MIB, Topology((1,), can_share=True), "native"),
    ],
)
def test_built_in_rules(nbytes, topology, expected):
    assert choose(nbytes, topology) == expected


@pytest.mark.parametrize(
    ("nbytes", "ranks", "expected"),
    [(4096, 2, "native"), (8192, 2, "shared"), (2048, 4, "native"), (4096, 4, "shared")],
)
def test_small_arrays_in_shared_memory(nbytes, ranks, expected):
    assert choose(nbytes, Topology((ranks,), can_share=True), in_place=True) == expected


def test_a_measured_table_takes_precedence_for_its_topology(tmp_path):
    tuning = Tuning((TuningRule(1, 4, 0, "native"), TuningRule(1, 4, 1000, "ring"), TuningRule(2, 4, 0, "shared")))
    tuning.save(tmp_path / "tuning.json")
    tuning = Tuning.load(tmp_path / "tuning.json")
    assert [choose(n, NODE, tuning) for n in (999, 1000)] == ["native", "ring"]
    assert choose(MIB, Topology((3,), can_share=True), tuning) == "shared"  # not measured: the built-in rule
    assert choose(MIB, CLUSTER, tuning) == "hierarchical"  # shared is impossible between nodes


@pytest.mark.parametrize("text", ["", "{}", '{"rules": [{"nodes": 1}]}', '{"rules": 3}'])
def test_a_file_that_is_not_a_table_is_named_in_the_error(tmp_path, text):
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tuning\.json"):
        Tuning.load(path)


def test_an_unknown_algorithm_in_a_table_is_named_with_a_suggestion(tmp_path):
    Tuning((TuningRule(1, 1, 0, "rings"),)).save(tmp_path / "t.json")
    with pytest.raises(UserError, match="no algorithm 'rings'; did you mean 'ring'"):
        Tuning.load(tmp_path / "t.json")


def test_an_algorithm_added_to_the_registry_may_be_used_in_a_table(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLE, "tree", TABLE["ring"])
    tuning = Tuning((TuningRule(1, 4, 0, "tree"),))
    tuning.save(tmp_path / "t.json")
    assert choose(MIB, NODE, Tuning.load(tmp_path / "t.json")) == "tree"
