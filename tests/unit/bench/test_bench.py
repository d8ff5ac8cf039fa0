"""The arithmetic of the bench: bandwidths, medians, turns, rows and rules. Nothing here is timed."""

import json
from threading import Thread

import numpy as np
import pytest

from ddl.bench import recovery, report, tolerance
from ddl.bench import step as step_bench
from ddl.bench.__main__ import measured, parser
from ddl.bench.allreduce import tuning_of
from ddl.bench.job import environment
from ddl.bench.measure import (
    Row,
    algorithm_bandwidth,
    bus_bandwidth,
    calls_per_block,
    in_turns,
    medians,
    spread,
)
from ddl.bench.models import CASES, STEPS_OF_DATA
from ddl.bench.recovery import WARM, death
from ddl.bench.step import Shares, data_of, make_loop
from ddl.collectives import Topology, Tuning, choose
from ddl.comm.threads import alone, run_ranks
from ddl.errors import DdlError, UserError

ROW = Row("allreduce", 4, {"bytes": 4096}, "auto", 2e-6, "mpi_allreduce", 5e-6, {"bus_gb_s": 3.0})


def test_bandwidths_are_computed_as_in_nccl_tests():
    assert algorithm_bandwidth(1_000_000_000, 0.5) == 2.0
    assert bus_bandwidth(1_000_000_000, 0.5, 2) == 2.0  # 2(n-1)/n = 1
    assert bus_bandwidth(1_000_000_000, 0.5, 4) == 3.0  # 1.5


def test_a_row_says_how_many_times_faster_ours_is():
    assert ROW.ratio == pytest.approx(2.5)
    row = json.loads(json.dumps(ROW.to_json()))
    keys = ["bench", "ranks", "bytes", "algorithm", "ours_s", "peer", "peer_s", "ratio"]
    assert list(row)[: len(keys)] == keys
    assert row["ratio"] == 2.5 and row["bytes"] == 4096


def test_blocks_are_long_enough_to_be_timed_and_never_empty():
    assert calls_per_block(1e-6, 1e-3) == 1000
    assert calls_per_block(1.0, 1e-3) == 1
    assert calls_per_block(0.0, 1e-3, most=50) == 50


def test_candidates_take_turns_and_the_order_rotates():
    order = []
    found = in_turns(
        {name: lambda name=name: order.append(name) for name in "abc"},
        rounds=3,
        together=lambda: order.append("|"),
        agree=lambda seconds: 1.0,  # one call a block
    )
    assert "".join(order[9:]) == "|a|b|c|b|c|a|c|a|b"
    assert found == {name: [1.0] * 3 for name in "abc"}


def test_medians_and_spread():
    assert medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}
    assert spread([1.0]) == 0
    assert spread([1.0] * 9) == 0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == pytest.approx(0.5)


def test_shares_add_up_to_one():
    shares = Shares()
    shares.seconds.update(load=0.1, compute=0.5, sum=0.2, update=0.1)
    assert shares.of(1.0) == {"load": 0.1, "compute": 0.5, "sum": 0.2, "update": 0.1, "loop": 0.1}


def row(ranks, nbytes, algorithm, ours_s, peer_s, peer="mpi_allreduce"):
    return {
        "nodes": 1,
        "ranks": ranks,
        "bytes": nbytes,
        "algorithm": algorithm,
        "ours_s": ours_s,
        "peer": peer,
        "peer_s": peer_s,
    }


def test_measured_rows_become_rules_that_choose_the_fastest():
    rows = []
    for nbytes, shared, ring, library in ((1024, 9, 8, 1), (4096, 5, 9, 6), (8192, 5, 4, 6)):
        rows += [row(2, nbytes, "auto", 1, library), row(2, nbytes, "shared", shared, library)]
        rows += [row(2, nbytes, "ring", ring, library), row(2, nbytes, "auto", 1, 0, "gloo")]
    tuning = tuning_of(rows)
    here = Topology((2,), can_share=True)
    sizes = {100: "native", 1024: "native", 5000: "shared", 8192: "ring", 1 << 30: "ring"}
    assert {nbytes: choose(nbytes, here, tuning) for nbytes in sizes} == sizes
    assert choose(8192, Topology((3,), can_share=True), tuning) == choose(8192, Topology((3,), can_share=True))


def test_a_saved_table_is_the_same_when_it_is_loaded(tmp_path):
    tuning = tuning_of([row(2, 1024, "shared", 1, 2), row(4, 1024, "shared", 3, 2)])
    tuning.save(tmp_path / "tuning.json")
    assert Tuning.load(tmp_path / "tuning.json") == tuning


def test_the_cost_of_a_death_is_the_delay_of_the_next_step():
    def event(kind, time, **more):
        return {"event": kind, "time": time, **more}

    lines = [event("step", 0.5 * number) for number in range(WARM + 3)]
    last = lines[-1]["time"]
    lines += [event("step", last + 0.25), event("failure", last + 0.5)]  # committed when the rank was dead already
    phases = {"detect": 9.0, "shrink": 0.25, "level": 0.25}
    lines += [event("recovery", last + 1.0, phases=phases), event("step", last + 2.0), event("step", last + 9.0)]
    found = death(lines, last + 0.125)
    assert (found.stall_s, found.step_s, found.cost_s) == (1.875, 0.5, 1.375)
    assert found.phases == {"detect": 0.375, "shrink": 0.25, "level": 0.25, "first_step": 1.0}


def test_two_jobs_step_in_turns_until_it_is_over(tmp_path):
    ours, others = tolerance.Turns(tmp_path / "turns", 0), tolerance.Turns(tmp_path / "turns", 1)
    parent, done = tolerance.Turns(tmp_path / "turns"), []

    def job(turns, name):
        while turns.take():
            done.append(name)
            parent.give(len(done) if len(done) < 6 else tolerance.OVER)

    threads = [Thread(target=job, args=each) for each in ((ours, "ours"), (others, "others"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["ours", "others"] * 3


def test_the_cost_of_tolerance_is_the_median_difference_of_neighbouring_blocks():
    drifting = np.array([[1.0, 1.02], [2.0, 2.01], [3.0, 3.03], [4.0, 4.02], [5.0, 5.02]])
    row = tolerance.summed_up("cnn", 2, drifting).to_json()
    assert row["cost_us"] == pytest.approx(20_000) and row["cost_quartiles_us"] == pytest.approx([20_000, 20_000])
    assert row["cost_share"] == pytest.approx(0.02 / 3, abs=1e-4)
    assert "costs 20000 us (20000 to 20000), 0.7% of a step" in report.row_text(row)


def test_figures_are_readable():
    assert [report.size_text(n) for n in (512, 1024, 1536, 1 << 20, 1 << 30)] == [
        "512 B",
        "1 KiB",
        "1.5 KiB",
        "1 MiB",
        "1 GiB",
    ]
    assert [report.time_text(s) for s in (2.5e-6, 0.0125, 3.0)] == ["2.5 us", "12.5 ms", "3 s"]
    text = report.row_text({**ROW.to_json(), "chosen": "shared", "algorithm_gb_s": 2.0})
    assert " ".join(text.split()) == "4 4 KiB auto (shared) 2 us mpi_allreduce 5 us 2.50 2 GB/s, bus 3"


def test_a_picture_is_drawn_of_either_kind(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot([ROW.to_json()], tmp_path / "sizes.png")

    step = Row("step", 2, {"model": "mlp"}, "auto", 1.0, "torch_ddp", 2.0)
    report.plot([step.to_json()], tmp_path / "steps.png")
    assert (tmp_path / "sizes.png").stat().st_size > 1000 and (tmp_path / "steps.png").stat().st_size > 1000


def test_threads_of_a_rank_and_the_librarys_own_settings():
    assert environment(2, 1, "on", {})["OPENBLAS_NUM_THREADS"] == "1"
    assert "OMPI_MCA_coll" not in environment(2, 1, "on", {})
    assert environment(1 << 20, 1, "off", {}) == {**environment(1 << 20, 1, "on", {}), "OMPI_MCA_coll": "^none"}


@pytest.mark.parametrize("words", [["step", "--models", "mpl"], ["step", "--ranks", "two"]])
def test_an_invalid_option_is_named(words):
    with pytest.raises(UserError, match=words[2]):
        next(measured(parser().parse_args(words)))


@pytest.mark.parametrize("name", ["mlp", "autoencoder", "text", "digits"])
def test_a_case_trains_on_its_own_batches(name, tmp_path):
    loop = make_loop(name, alone(), tmp_path)
    assert loop.task.order.global_batch == CASES[name].batch
    assert loop.task.order.steps_per_epoch == STEPS_OF_DATA
    before = loop.state.params.flat.copy()
    for _ in range(2):
        loop.advance()
    assert loop.state.progress.samples == 2 * CASES[name].batch
    assert not np.array_equal(loop.state.params.flat, before) and np.isfinite(loop.state.params.flat).all()
    loop.close()
    loop.log.close()


def test_steps_in_turns_counts_every_rank_the_same(monkeypatch):
    monkeypatch.setattr(step_bench, "BLOCK_S", 1e-6)
    calls = []

    def work(group):
        found = step_bench.steps_in_turns({"a": lambda: calls.append(1)}, group, 0.0)
        return len(found["a"])

    first, second = run_ranks(2, work)
    assert first == second > 0


def test_data_is_the_same_on_every_rank():
    one, two = data_of(CASES["digits"], 2), data_of(CASES["digits"], 2)
    assert np.array_equal(one.arrays["x"], two.arrays["x"]) and len(one) == 64 * STEPS_OF_DATA


def test_a_peer_that_never_recovers_costs_its_own_column_alone(monkeypatch, tmp_path):
    def fails(*arguments):
        raise DdlError("torchrun did not restart the ranks")

    monkeypatch.setattr(recovery, "ours", lambda *arguments: recovery.DeathCost(0.1, 0.01, {"shrink": 0.02}))
    monkeypatch.setattr(recovery, "theirs", fails)
    (row,) = recovery.rows(2, ["torchrun"], 3, 1)
    assert (row.ours_s, row.peer, row.more["peer_lost"]) == (pytest.approx(0.09), "itself", 3)
    assert "torchrun did not recover 3 times" in report.row_text(row.to_json())
    answers = [recovery.DeathCost(0.5, 0.01, {}), recovery.DeathCost(0.7, 0.01, {})]
    monkeypatch.setattr(recovery, "theirs", lambda *arguments: answers.pop() if answers else fails())
    (row,) = recovery.rows(2, ["torchrun"], 3, 1)
    assert (row.peer, row.peer_s, row.more["peer_lost"]) == ("torchrun", pytest.approx(0.59), 1)
    assert "torchrun did not recover 1 time" in report.row_text(row.to_json())
