"""A run is followed from its files: what is new, what is damaged, what came before; in a terminal and over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import threading

import numpy as np
import pytest

from ddl.__main__ import VERBS
from ddl.dashboard import Dashboard
from ddl.watch import RunView, find_runs
from ddl.watch.__main__ import main as watch
from ddl.watch.series import MOST_POINTS
from ddl.watch.terminal import news, screen

START = {
    **{"event": "start", "time": 100.0, "name": "digits", "launch": "a", "model": "cnn", "device": "cpu"},
    **{"ranks": 3, "spares": 0, "hosts": {"here": 3}, "shards": 6, "steps": 40, "steps_per_epoch": 10, "step": 0},
}


def step(number: int, **more) -> dict:
    values = {"step": number, "epoch": 1, "loss": 1 / number, "lr": 0.1, "samples": 64, "seconds": 0.5}
    return {"event": "step", "time": 100.0 + number, **values, **more}


FAILURE = {"event": "failure", "time": 113.0, "step": 12, "rank": 1, "host": "here", "how": "crash", "phase": "load"}
RECOVERY = {"event": "recovery", "time": 113.1, "step": 12, "generation": 1, "ranks": [0, 2], "seconds": 0.125}
EPOCH = {
    **{"event": "epoch", "time": 110.0, "epoch": 1, "step": 10, "best": True, "waited": {"0": 0.5, "1": 2.0}},
    **{"train": {"loss": 0.75, "accuracy": 0.5, "confusion": [[1]]}, "validation": {"loss": 0.25}},
}
LEDGER = [
    {"start": 0, "launch": "a"},
    {"step": 0, "launch": "a", "plan": [0, 0, 1, 1, 2, 2]},
    *({"step": number, "launch": "a"} for number in range(1, 12)),
    {"step": 12, "launch": "a", "plan": [0, 0, 0, 2, 2, 2]},
]


def append(path, *lines):
    with open(path, "a") as file:
        file.writelines(
            (line if isinstance(line, str) else json.dumps(line, separators=(",", ":"))) + "\n" for line in lines
        )


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "runs" / "digits"
    run.mkdir(parents=True)
    append(run / "metrics.jsonl", START, *map(step, range(1, 11)), EPOCH, step(11), step(12), FAILURE, RECOVERY)
    append(run / "ledger.jsonl", *LEDGER)
    return run


@pytest.fixture
def view(folder):
    made = RunView(folder)
    made.refresh()
    return made


def end(folder):
    summary = {"status": "finished", "launch": "a", "steps": 40, "wall_s": 12.5, "stopped_early": "why"}
    final = {"checkpoint": "best", "step": 10, "test": {"accuracy": 0.75}}
    (folder / "summary.json").write_text(json.dumps({**summary, "final": final}))
    append(folder / "metrics.jsonl", {"event": "end", "time": 141.0, "status": "finished"})


def test_a_running_job_is_known_by_its_ranks_shards_pace_and_time_left(view):
    assert (view.status, view.steps_done, view.alive, view.dead) == ("running", 12, [0, 2], {1})
    assert view.shards == {0: 3, 2: 3}
    assert view.samples_per_s == 128 and view.seconds_left == 28 * 0.5
    assert view.plans == [(0, [0, 0, 1, 1, 2, 2]), (12, [0, 0, 0, 2, 2, 2])]
    assert view.epochs[0]["train"] == {"loss": 0.75, "accuracy": 0.5} and view.epochs[0]["waited"] == {0: 0.5, 1: 2.0}
    curves = view.to_json()["curves"]
    assert curves["step"] == list(range(1, 13))
    assert curves["curves"]["loss"]["mean"] == pytest.approx([1 / n for n in range(1, 13)], rel=1e-5)


def test_only_whole_new_lines_are_read(view, folder):
    version = view.version
    view.refresh()
    assert view.version == version
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(step(13))[:20])
        file.flush()
        view.refresh()
        assert view.steps_done == 12
        file.write(json.dumps(step(13))[20:] + "\n")
    view.refresh()
    assert view.steps_done == 13 and view.version > version and not view.notes


DAMAGED = [
    "{",
    "[1]",
    "null",
    '{"event":"step","time":1}',
    json.dumps(step(13, samples="x")),
    json.dumps(step(-1)),
    "\x00",
]
DAMAGED += [
    json.dumps({**EPOCH, "train": 3}),
    json.dumps({**RECOVERY, "ranks": "all"}),
    json.dumps({**START, "hosts": []}),
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_passed_over_with_a_note(line, view, folder):
    append(folder / "metrics.jsonl", line, step(13))
    view.refresh()
    assert view.steps_done == 13
    assert view.notes == ["1 damaged line was passed over in metrics.jsonl (line 17)"]
    assert "note: 1 damaged line was passed over" in "\n".join(screen(view))


def test_a_resumed_run_replaces_the_steps_after_its_checkpoint(view, folder):
    append(folder / "metrics.jsonl", {**START, "time": 200.0, "launch": "b", "step": 5}, step(6, time=201.0, loss=9.0))
    append(folder / "ledger.jsonl", {"step": 5, "launch": "b", "plan": [0, 0, 1, 1, 2, 2]})
    view.refresh()
    assert view.curves.to_json()["step"] == [1, 2, 3, 4, 5, 6]
    assert view.epochs == [] and view.alive == [0, 1, 2] and view.shards == {0: 2, 1: 2, 2: 2}
    assert len(view.failures) == 1  # it stays part of the history


def test_a_folder_that_is_made_again_is_read_from_its_beginning(view, folder):
    (folder / "metrics.jsonl").unlink()
    append(folder / "metrics.jsonl", START, step(1))
    view.refresh()
    assert view.steps_done == 1 and not view.failures


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "summary.json"])
def test_what_is_no_regular_file_is_not_opened(name, folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    RunView(folder).refresh()


def test_long_curves_stay_small_and_keep_their_shape(tmp_path):
    count = 20_000
    losses = np.linspace(3, 1, count)
    losses[7000] = 50.0
    append(tmp_path / "metrics.jsonl", START, *(step(n, loss=loss) for n, loss in enumerate(losses, 1)))
    view = RunView(tmp_path)
    view.refresh()
    curves = view.curves.to_json()
    assert MOST_POINTS / 2 <= len(curves["step"]) <= MOST_POINTS and curves["step"][-1] == count
    loss = curves["curves"]["loss"]
    assert max(loss["largest"]) == 50 and loss["mean"][0] == pytest.approx(3, abs=0.01)
    assert loss["mean"][-1] == pytest.approx(1, abs=0.01)


def test_a_screen_has_the_width_of_the_terminal_and_everything_of_note(view, folder):
    end(folder)
    view.refresh()
    lines = screen(view, 70)
    assert all(len(line) <= 70 for line in lines)
    text = "\n".join(lines)
    for part in ("digits: cnn on cpu   finished", "epoch 2/4  step 12/40", "128 samples/s", "rank 1   lost"):
        assert part in text
    assert "lost rank 1 on here at step 12 (crash in load); recovered in 125 ms" in "\n".join(screen(view, 120))
    assert "final state: the best checkpoint, of step 10" in text and "stopped early: why" in text


def test_elsewhere_than_in_a_terminal_news_are_lines(view, folder):
    seen: dict[str, int] = {}
    list(news(view, seen))
    append(folder / "metrics.jsonl", {**EPOCH, "epoch": 2, "step": 20, "best": False, "validation": {"loss": 0.5}})
    end(folder)
    view.refresh()
    told = list(news(view, seen))
    assert told[0] == "epoch 2/4: train loss 0.75, accuracy 50.00 %; validation loss 0.5"
    assert told[1] == "finished after 40 steps, in 12.5 s" and not list(news(view, seen))


def test_watch_ends_with_the_run_and_takes_a_folder_of_runs(folder, capsys):
    end(folder)
    assert watch([str(folder.parent)]) == 0
    assert "finished after 40 steps" in capsys.readouterr().out
    assert watch([str(folder / "checkpoints")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_a_run_without_metrics_is_known_by_its_ledger_and_summary(folder):
    (folder / "metrics.jsonl").unlink()
    view = RunView(folder)
    view.refresh()
    assert view.status == "running" and view.to_json()["plans"] and "metrics.jsonl has no start" in view.notes[0]
    assert screen(view)[0].endswith("running")
    (folder / "summary.json").write_text(json.dumps({"status": "failed", "launch": "a", "steps": 3, "error": "why"}))
    view.refresh()
    assert view.status == "failed" and screen(view)[-1] == "why"


def test_both_are_verbs_of_ddl():
    assert {"watch", "dashboard"} <= set(VERBS)


@pytest.fixture
def served(folder):
    dashboard = Dashboard(folder.parent, token="secret")
    thread = threading.Thread(target=dashboard.serve, daemon=True)
    thread.start()

    def get(path: str, host: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{dashboard.port}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    yield get
    dashboard.close()
    thread.join()


def test_the_page_and_its_parts_come_from_the_server(served):
    status, page = served("/secret/")
    assert status == 200
    for name in ("page.js", "charts.js", "page.css", "uPlot.js", "uPlot.css"):
        assert f'"{name}"'.encode() in page
        assert served(f"/secret/{name}")[0] == 200
    for text in (page, served("/secret/page.js")[1], served("/secret/page.css")[1], served("/secret/charts.js")[1]):
        assert b"http:" not in text and b"https:" not in text  # nothing is fetched from elsewhere


def test_the_runs_are_served_as_json_and_again_only_when_they_changed(served, folder):
    status, body = served("/secret/api/runs")
    answer = json.loads(body)
    assert status == 200 and answer["complete"]
    (run,) = answer["runs"]
    assert (run["id"], run["name"], run["step"], run["alive"], run["dead"]) == ("digits", "digits", 12, [0, 2], [1])
    whole = json.loads(served("/secret/api/run?id=digits&version=-1")[1])
    assert whole["plans"][1] == [12, [0, 0, 0, 2, 2, 2]] and whole["recoveries"][0]["seconds"] == 0.125
    again = f"/secret/api/run?id=digits&version={whole['version']}"
    assert json.loads(served(again)[1]) == {"id": "digits", "version": whole["version"], "unchanged": True}
    append(folder / "metrics.jsonl", step(13))
    served("/secret/api/runs")
    assert json.loads(served(again)[1])["curves"]["step"][-1] == 13


@pytest.mark.parametrize("path", ["/", "/api/runs", "/page.js", "/secre/api/runs", "/secretly/", "/é/"])
def test_without_the_token_everything_is_refused(path, served):
    status, body = served(path.encode("latin-1").decode("ascii", "replace").replace("\ufffd", "%E9"))
    assert status == 403 and b"digits" not in body


def test_a_page_of_another_host_is_refused(served):
    assert served("/secret/api/runs", host="evil.example:80")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        *("/secret/../metrics.jsonl", "/secret/%2e%2e/metrics.jsonl", "/secret/static/index.html", "/secret/server.py"),
        *("/secret/api/run?id=../runs/digits", "/secret/api/run?id=/etc", "/secret/api/run?id=", "/secret/api/run"),
        *("/secret/digits/metrics.jsonl", "/secret/..%2f..%2fpyproject.toml", "/secret/api/run?id=digits%00"),
    ],
)
def test_no_path_leads_to_a_file(path, served):
    assert served(path)[0] == 404


def test_runs_below_a_folder_are_found_and_symbolic_links_are_not_followed(folder):
    (folder.parent / "deep" / "er").mkdir(parents=True)
    append(folder.parent / "deep" / "er" / "metrics.jsonl", START)
    (folder.parent / "link").symlink_to(folder)
    assert set(find_runs(folder.parent)) == {"digits", "deep/er"}
    assert set(find_runs(folder)) == {"."}
