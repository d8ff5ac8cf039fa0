"""The second mpirun of a bench, which runs only MPI, and our ranks, which sleep during its turn."""

import json
import subprocess
import sys

import pytest

from ddl.bench import job, stock_mpi
from ddl.bench.allreduce import better_form, native_of, tuning_of
from ddl.bench.job import Plain, rows
from ddl.bench.measure import Elsewhere, in_turns
from ddl.bench.wire import Bell
from ddl.comm.threads import run_ranks
from ddl.errors import DdlError

# A stand-in for mpirun: of our program it asks twice, of the other it answers with what it was asked.
FAKE = """#!{python}
import json, sys
if "ddl.bench.stock_mpi" in sys.argv:
    for line in sys.stdin:
        if json.loads(line)[0] == "die":
            sys.exit(1)
        print("MPI says something", flush=True)
        print(json.dumps({{"seconds": json.loads(line)[1]}}), flush=True)
    sys.exit(0)
found = []
for question in {questions}:
    print(json.dumps({{"ask": question}}), flush=True)
    found.append(json.loads(sys.stdin.readline())["seconds"])
print(json.dumps({{"found": found}}), flush=True)
print(json.dumps({{"end": True}}), flush=True)
"""


def fake_mpirun(folder, questions) -> dict:
    path = folder / "mpirun"
    path.write_text(FAKE.format(python=sys.executable, questions=questions))
    path.chmod(0o755)
    return {"bench": "allreduce", "mpirun": str(path)}


def test_questions_of_the_leader_are_answered_by_the_second_mpirun(tmp_path):
    options = fake_mpirun(tmp_path, [("in_place", 0.25), ("two_buffers", 0.5)])
    assert list(rows(options, 4, "on", 1)) == [{"found": [0.25, 0.5]}]


def test_a_second_mpirun_that_ends_early_ends_the_bench(tmp_path):
    with pytest.raises(DdlError, match="MPI alone"):
        list(rows(fake_mpirun(tmp_path, [("die", 0)]), 4, "off", 1))


def test_a_bench_that_asks_nothing_starts_no_second_mpirun(tmp_path):
    assert list(rows(fake_mpirun(tmp_path, []), 2, "off", 1)) == [{"found": []}]
    with Plain({"mpirun": "/nowhere"}, 2, {}) as nobody:
        assert nobody._process is None


@pytest.mark.parametrize("tolerance", ["on", "off"])
def test_a_wrapped_mpirun_gets_the_same_parameters(monkeypatch, tolerance):
    """For ``hosts.sh mpirun`` or ``srun mpirun``, added options follow all words of the command."""
    monkeypatch.setattr(job, "find_mpirun", lambda: "/somewhere/mpirun")
    monkeypatch.setattr(job, "is_open_mpi", lambda path: path == "/somewhere/mpirun")
    monkeypatch.setattr(job.shutil, "which", lambda word: {"mpirun": "/somewhere/mpirun"}.get(word, word))
    monkeypatch.setattr(job, "command_line", lambda path, program, ranks, **_: [path, "-n", str(ranks), *program])
    plain, wrapped = (job.command_of("m", [], {"mpirun": words}, 2, tolerance, {}) for words in ("", "a.sh --x mpirun"))
    assert plain[0] == "/somewhere/mpirun" and wrapped == ["a.sh", "--x", "mpirun", *plain[1:]]
    assert plain[-5:-2] == ["-n", "2", sys.executable]
    assert "--prtemca" not in job.command_of("m", [], {"mpirun": "/other/mpirun"}, 2, tolerance, {})
    added = plain[1:-5]
    assert added[:3] == (["--prtemca", "state_base_recoverable", "0"] if tolerance == "off" else [])


def test_the_second_program_times_mpi_and_ends_with_its_input():
    pytest.importorskip("mpi4py")
    asked = [("in_place", 4096, 3), ("two_buffers", 4096, 1)]
    done = subprocess.run(
        [sys.executable, "-m", "ddl.bench.stock_mpi"],
        input="".join(json.dumps(order) + "\n" for order in asked),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == 2 and all(0 < answer["seconds"] < 1 for answer in answers)


@pytest.mark.parametrize(
    ("environment", "is_set"),
    [
        ({}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4096"}, True),
    ],
)
def test_the_second_program_sets_only_mpis_own_choice_for_oversubscribed_cores(environment, is_set):
    found = dict(environment)
    stock_mpi.settle(found)
    assert found == {**environment, **({"OMPI_MCA_mpi_yield_when_idle": "1"} if is_set else {})}
    chosen = {"OMPI_COMM_WORLD_LOCAL_SIZE": "4096", "OMPI_MCA_mpi_yield_when_idle": "0"}
    stock_mpi.settle(chosen)
    assert chosen["OMPI_MCA_mpi_yield_when_idle"] == "0"


def test_a_remote_call_takes_its_turn_and_reports_its_own_time():
    found = in_turns({"a": int, "b": Elsewhere(lambda calls: 2.0)}, 3, lambda: None, agree=lambda seconds: seconds)
    assert found["b"] == [2.0] * 3 and max(found["a"]) < 1.0


def test_all_ranks_receive_the_leaders_message():
    def listen(group):
        bell = Bell(group)
        found = [bell.ring(10.0 * group.rank + number) for number in range(3)]
        bell.close()
        return found

    assert run_ranks(3, listen) == [[0.0, 1.0, 2.0]] * 3


def test_a_library_counts_with_its_better_form():
    times = {"mpi in_place": [3.0, 1.0, 2.0], "mpi two_buffers": [1.5, 9.0, 1.5]}
    assert better_form(times, "mpi") == [1.5, 9.0, 1.5]


def test_between_hosts_native_is_the_library_in_our_own_process():
    assert (native_of(1), native_of(2)) == ("mpi_allreduce", "mpi_allreduce_tuned")
    known = {"nodes": 2, "ranks": 4, "bytes": 1024, "ours_s": 2.0}
    found = [
        {**known, "algorithm": "auto", "peer": "mpi_allreduce", "peer_s": 9.0},
        {**known, "algorithm": "ring", "peer": "mpi_allreduce_tuned", "peer_s": 1.0},
    ]
    assert [rule.algorithm for rule in tuning_of(found).rules] == ["native"]
