"""The start of a job: if any rank dies during it, the next leader continues in the same folder, under the same name."""

import json
from pathlib import Path

import pytest

from ddl.audit import report
from ddl.comm.deaths import Death, Killed
from ddl.comm.threads import run_ranks
from ddl.errors import ConfigError, DataError, JobEnded, UserCodeError
from ddl.fault.recover import survive

SETTINGS = {"run.name": "mine"}


def lines(name):
    return [json.loads(line) for line in Path("runs/mine", name).read_text().splitlines()]


def points_to_first_step(job, rank):
    """How many kill points a rank passes in an undisturbed start."""
    passed, over = [0], [False]

    def probe(number):
        def count(point):
            over[0] |= number == rank and point == "step.commit"
            passed[0] += number == rank and not over[0]

        return count

    run_ranks(3, job, probe=probe)
    return passed[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_at_any_point_of_the_start_keeps_folder_and_name(rank, whole_job, tmp_path, monkeypatch):
    def job(group):
        return whole_job(group, SETTINGS, total_steps=1)

    last = points_to_first_step(job, rank)
    assert last > 20
    for count in range(1, last + 1):
        here = tmp_path / f"death-{count}"
        here.mkdir()
        monkeypatch.chdir(here)
        results = run_ranks(3, job, death=Death(rank, count))
        assert isinstance(results[rank], Killed)
        assert all(r[1] is None for r in results if not isinstance(r, Killed)), (count, results)
        assert [path.name for path in Path("runs").iterdir()] == ["mine"], (count, str(results[rank]))
        starts = [line for line in lines("ledger.jsonl") if "start" in line]
        assert len({line["launch"] for line in starts}) == 1 and lines("ledger.jsonl")[0] == starts[0], count
        assert report(Path("runs/mine")).is_exact
        events = lines("metrics.jsonl")
        assert events[0]["event"] == "start" and {e["launch"] for e in events if e["event"] == "start"} == {
            starts[0]["launch"]
        }
        summary = json.loads(Path("runs/mine/summary.json").read_text())
        assert summary["launch"] == starts[0]["launch"] and summary["status"] == "finished"
        assert summary["ranks_started"] == 3 and summary["ranks_finished"] == 2
        assert [failure["rank"] for failure in summary["failures"]] == [rank], count
        assert [e["rank"] for e in events if e["event"] == "failure"][:1] == [rank]


def test_a_leader_that_dies_in_a_named_folder_leaves_no_second_run(whole_job):
    settings = {"run.dir": "here", "checkpoint.resume": "none"}
    results = run_ranks(2, lambda g: whole_job(g, settings), death=Death(0, 1, "setup.claim.done"))
    assert results[1][1] is None
    (_, refused), *_ = run_ranks(2, lambda g: whole_job(g, settings))
    assert isinstance(refused, ConfigError) and "holds a run already" in str(refused)


def test_a_state_that_came_half_is_not_trained_on(whole_job, monkeypatch):
    """The first leader has read a checkpoint and dies while broadcasting it; the next leader reads it again."""
    run_ranks(2, lambda g: whole_job(g, {"run.dir": "here"}))
    again = {"run.dir": "again", "checkpoint.resume": "here"}
    calm = run_ranks(2, lambda g: whole_job(g, again, total_steps=12))[0][0].state.digest()
    for count in range(1, 5):
        settings = {**again, "run.dir": f"again-{count}"}
        results = run_ranks(
            3, lambda g, s=settings: whole_job(g, s, total_steps=12), death=Death(0, count, "job.broadcast")
        )
        assert results[1][0].state.progress.step == 12
        alone = run_ranks(2, lambda g, s=settings: whole_job(g, {**s, "run.dir": s["run.dir"] + "b"}, total_steps=12))
        assert alone[0][0].state.digest() == calm
        assert results[1][0].state.parameters_digest() == results[2][0].state.parameters_digest()


@pytest.mark.parametrize("error", [DataError("x"), UserCodeError("x")])
def test_an_error_on_one_rank_ends_all_with_its_status(error):
    def begin(group):
        mine = error if group.rank == 1 else None
        return survive(group, lambda g: next((e for e in g.gather_objects(mine) if e), None))[1]

    results = run_ranks(3, begin, spares=2)
    assert [type(result) for result in results] == [type(error)] * 3 + [JobEnded] * 2
    assert {result.exit_status for result in results} == {error.exit_status}


@pytest.mark.parametrize("error", [DataError("x"), UserCodeError("x")])
def test_an_error_on_a_spare_ends_all_with_its_status(error):
    def begin(group):
        return survive(group, lambda g: None, error if group.rank == 3 else None)[1]

    results = run_ranks(3, begin, spares=2)
    assert [type(result) for result in results] == [JobEnded] * 3 + [type(error)] + [JobEnded]
    assert {result.exit_status for result in results} == {error.exit_status}
