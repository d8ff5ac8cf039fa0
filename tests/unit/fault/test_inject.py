"""A script of faults is parsed strictly, replays exactly, and injects the faults it describes."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddl
from ddl.errors import ConfigError
from ddl.fault import inject
from ddl.fault.inject import ACTS, POINTS, Fault, InjectedError, parse


def test_a_script_is_read_as_written():
    text = (
        "kill rank 2 at step 40; stop rank 1 at step 80; segv rank 0 at step 3;exit rank 2 at step 9; "
        "raise rank 1 at step 5; hang rank 3 at step 7; kill rank 3 at point allreduce.barrier:17; "
        "kill ranks 0,1 at step 2 point step.commit;"
    )
    assert parse(text).faults == (
        Fault("kill", 2, 40),
        Fault("stop", 1, 80),
        Fault("segv", 0, 3),
        Fault("exit", 2, 9),
        Fault("raise", 1, 5),
        Fault("hang", 3, 7),
        Fault("kill", 3, None, "allreduce.barrier", 17),
        Fault("kill", 0, 2, "step.commit"),
        Fault("kill", 1, 2, "step.commit"),
    )


@given(
    st.lists(
        st.builds(
            Fault,
            st.sampled_from(sorted(ACTS)),
            st.integers(0, 99),
            st.integers(0, 999),
            st.none() | st.sampled_from(sorted(POINTS)),
        )
    )
)
def test_the_text_of_a_script_replays_it(faults):
    script = inject.Script(tuple(faults))
    assert parse(str(script)) == script


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kill", "cannot read"),
        ("kill rank 2", "cannot read"),
        ("kill rank 2 at", "cannot read"),
        ("kill rank x at step 3", "cannot read"),
        ("kill rank 2 at step 3 please", "cannot read"),
        ("slay rank 2 at step 3", 'there is no act "slay"'),
        ("kill rank 2 at point allreduce.barier:3", "did you mean allreduce.barrier"),
        ("kill rank 2 at point step.load:0", "count from 1"),
        ("kill rank 4 at step 3", "there is no rank 4"),
        ("random:seed=7,deaths=3", "no option 'deaths'"),
        ("random:seed=x", "invalid literal"),
        ("random:kills=4", "1 to 3 of 4 ranks"),
        ("random:kills=0", "1 to 3 of 4 ranks"),
        ("random:acts=kill+maim", "no act 'maim'"),
    ],
)
def test_an_invalid_script_is_rejected_in_one_line(text, said):
    with pytest.raises(ConfigError) as caught:
        parse(text, ranks=4)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def happened(script, rank, points, step=lambda: 0):
    """(number of the point, fault) for each fault that a rank passing ``points`` meets."""
    found = []
    probe = parse(script).probe(rank, step, found.append)
    out = []
    for number, point in enumerate(points, 1):
        probe(point)
        out += [(number, str(fault)) for fault in found]
        found.clear()
    return out


def test_a_point_is_counted_by_name_and_met_once():
    points = ["step.load", "step.sum"] * 5
    assert happened("kill rank 1 at point step.sum:3", 1, points) == [(6, "kill rank 1 at point step.sum:3")]
    assert happened("kill rank 1 at point step.sum:3", 0, points) == []


def test_a_step_is_met_at_its_first_point():
    committed = iter([0, 0, 1, 1, 2, 2, 2])
    now = happened("kill rank 0 at step 2", 0, ["step.load"] * 7, lambda: next(committed))
    assert now == [(5, "kill rank 0 at step 2")]


def test_a_point_of_a_step_is_counted_within_it():
    committed = [0, 0, 0, 1, 1, 1]
    place = iter(committed)
    now = happened("kill rank 0 at step 1 point step.load:2", 0, ["step.load"] * 6, lambda: next(place))
    assert now == [(5, "kill rank 0 at step 1 point step.load:2")]


def test_a_seed_determines_the_random_faults():
    text = "random:seed=7,kills=3,acts=kill+stop"
    script = parse(text, ranks=4, steps=50)
    assert script == parse(text, ranks=4, steps=50)
    assert script != parse(text.replace("7", "8"), ranks=4, steps=50)
    assert len({fault.rank for fault in script.faults}) == 3
    assert all(1 <= fault.step < 50 and fault.act in ("kill", "stop") for fault in script.faults)
    assert parse(str(script)) == script


def test_raise_looks_like_an_error_of_the_users():
    with pytest.raises(InjectedError, match="raise rank 0 at step 0"):
        parse("raise rank 0 at step 0").probe(0)("step.load")
    assert not issubclass(InjectedError, ddl.errors.DdlError)


def test_every_point_that_the_code_names_is_known(trees):
    """What is passed to a probe as a plain string is a name in the list."""
    named = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == "probe" and isinstance(node.args[0].value, str):
                    named.add(node.args[0].value)
    assert "step.load" in named
    assert named <= set(POINTS)
