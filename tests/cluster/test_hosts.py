"""mpirun over two simulated hosts, each with its own name, address, process table and /dev/shm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ddl.audit import report
from ddl.launcher.mpirun import find_mpirun

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLS = ("ip", "tc", "nsenter", "unshare", "taskset", "mpirun")
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=SEARCH) is None]
JOB = (
    *("--model.name=mlp", "--train.steps=30", "--train.global_batch=256", "--train.dtype=float64"),
    *("--train.compiled=off", "--metrics.console_every_s=0"),
)
MPIRUN = ("mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-n")
SAME = 1e-10  # in float64 only the order of sums differs

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces"),
    pytest.mark.skipif(bool(MISSING), reason=f"this machine has no {', '.join(MISSING)}"),
]


class Hosts:
    """Hosts made by hosts.sh; ``tag`` keeps their names distinct."""

    def __init__(self, tag: str):
        self.environ = {
            **os.environ,
            "DDL_HOSTS_TAG": tag,
            "PYTHONPATH": str(ROOT),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def script(self, *words: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        command = ["timeout", "-k", "5", str(limit_s), str(HERE / "hosts.sh"), *words]
        return subprocess.run(
            command, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s + 10
        )

    def python(self, words: Sequence[str], ranks: int = 4, limit_s: float = 60) -> str:
        """What ``ranks`` ranks of python printed, two on each host. A death of some of them is survived."""
        done = self.script(*MPIRUN, str(ranks), "--with-ft", "ulfm", sys.executable, *words, limit_s=limit_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def train(self, folder: Path, *words: str) -> Trained:
        return Trained(folder, self.python(["-m", "ddl.train", *JOB, *words, "--run.dir", str(folder)]))


class Trained:
    """What a job left behind."""

    def __init__(self, folder: Path, said: str):
        self.said = said
        self.summary = json.loads((folder / "summary.json").read_text())
        events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        self.losses = {event["step"]: event["loss"] for event in events if event["event"] == "step"}

    def is_like(self, other: Trained) -> bool:
        """The same loss at each step, and each sample used once per epoch."""
        samples = self.summary["samples"]
        assert samples["used"] == samples["expected"] > 0 and samples["missing"] == samples["repeated"] == 0
        return self.losses == pytest.approx(other.losses, rel=SAME)


def links() -> str:
    return subprocess.run(["ip", "-br", "link"], env={"PATH": SEARCH}, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def hosts():
    made = Hosts(f"t{os.getpid() % 1_000_000}")
    started = made.script("start", "2", "1gbit")
    if started.returncode != 0:
        pytest.skip(f"no namespaces here: {started.stderr.strip()}")
    yield made
    assert made.script("stop").returncode == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Trained:
    """The job on one rank of this machine."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, "-m", "ddl.train", *JOB, "--run.dir", str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return Trained(folder, done.stdout)


def program(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(text)
    return [str(path)]


SEE_EACH_OTHER = """
import json, os
from ddl.arrays import Layout
from ddl.collectives.shared import workspace
from ddl.comm import mpi
from ddl.parallel import GradientSum
from ddl.parallel.sums import MultiNode

group = mpi.start()
reducer = GradientSum(group, Layout.of({"a": (300_000,), "b": (300_000,)}), 1)
mine = [group.me.host, isinstance(reducer._sum, MultiNode), reducer.overlaps, workspace(group) is not None]
found = {"nodes": group.nodes, "tolerant": group.tolerant, "ranks": group.gather_objects(mine)}
if group.is_leader:
    print(json.dumps(found), flush=True)
reducer.close()
mpi.finish(group)
"""


def test_ranks_know_who_shares_their_memory(hosts, tmp_path):
    found = json.loads(hosts.python(program(tmp_path, SEE_EACH_OTHER)))
    assert found["nodes"] == [[0, 1], [2, 3]] and found["tolerant"]
    names = [hosts.environ["DDL_HOSTS_TAG"] + str(number) for number in (1, 1, 2, 2)]
    assert found["ranks"] == [[name, True, False, True] for name in names]


def test_the_suite_of_mpi_tests_holds_over_hosts(hosts, tmp_path):
    ranks = f'{sys.executable} -m pytest --with-mpi -q -p no:cacheprovider {ROOT}/tests/mpi -k "$0" '
    ranks += f"-o faulthandler_timeout=60 >{tmp_path}/$OMPI_COMM_WORLD_RANK 2>&1"
    chosen = "float32 or gradients_headers or memory or members or exchange or agree or allocates"
    hosts.script(*MPIRUN, "4", "bash", "-c", ranks, chosen, limit_s=150)
    for rank in range(4):
        report = (tmp_path / str(rank)).read_text()
        assert " passed" in report and "failed" not in report and "error" not in report, report


def test_a_job_ends_as_on_one_rank(hosts, alone, tmp_path):
    trained = hosts.train(tmp_path / "run")
    assert trained.summary["status"] == "finished" and trained.summary["ranks_finished"] == 4
    assert trained.is_like(alone)


def test_buckets_that_leave_during_backward_change_nothing(hosts, alone, tmp_path):
    trained = hosts.train(tmp_path / "run", "--comm.overlap", "on", "--comm.bucket_mib", "0.01")
    assert trained.is_like(alone)


@pytest.mark.parametrize(
    "fault",
    [
        "kill rank 3 at step 9",
        "kill rank 0 at point allreduce.stream:12",
        "kill rank 2 at point allreduce.stream.message:40",
        "kill rank 2 at step 5; kill rank 3 at step 11",
    ],
)
def test_a_death_on_any_host_is_survived(hosts, alone, tmp_path, fault):
    trained = hosts.train(tmp_path / "run", "--fault.chaos", fault)
    deaths = fault.count("kill")
    assert [failure["kind"] for failure in trained.summary["failures"]] == ["crash"] * deaths
    assert trained.summary["status"] == "finished" and trained.summary["ranks_finished"] == 4 - deaths
    assert trained.is_like(alone)


@pytest.mark.parametrize("fault", ["", "kill rank 2 at point allreduce.stream.message:40"])
def test_short_gradients_train_as_well_as_long_ones(hosts, tmp_path, fault):
    words = ("--train.dtype=float32", "--comm.wire=int8", "--fault.chaos", fault)
    short, long = hosts.train(tmp_path / "short", *words), hosts.train(tmp_path / "long", words[0])
    assert short.summary["ranks_finished"] == 4 - len(short.summary["failures"]) == 4 - bool(fault)
    samples = short.summary["samples"]
    assert samples["used"] == samples["expected"] > 0 and samples["missing"] == samples["repeated"] == 0
    assert short.losses != long.losses and short.losses == pytest.approx(long.losses, rel=0.02)
    assert "comm.wire" not in short.said


def test_nothing_is_left_of_hosts_that_are_stopped(tmp_path):
    tag = f"s{os.getpid() % 1_000_000}"
    made = Hosts(tag)
    assert made.script("start", "3").returncode == 0
    assert tag in links()
    pids = [int(word) for number in "123" for word in made.script("pids", number).stdout.split()]
    assert len(pids) >= 3
    assert made.script("stop").returncode == 0
    assert tag not in links() and not list(Path("/run/netns").glob(f"{tag}*"))
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# A link that is cut, under ddl.launch.

LIMIT_S = 140.0
SUPERVISOR = """
import sys
import ddl.launch, ddl.launcher.mpirun
ddl.launcher.mpirun.find_mpirun = lambda: {mpirun!r}
raise SystemExit(ddl.launch.main())
"""
WRAPPER = """#!/bin/bash
exec {mpirun} --prtemca plm_ssh_agent "{script} agent" --prtemca prte_if_include {net}.0/24 \\
  --mca btl_tcp_if_include {net}.0/24 "$@"
"""
SLOW = """
import time
def step(outcome):
    time.sleep(0.1)
"""


@pytest.fixture
def own_hosts():
    made = Hosts(f"l{os.getpid() % 1_000_000}")
    started = made.script("start", "2")
    if started.returncode != 0:
        pytest.skip(f"no namespaces here: {started.stderr.strip()}")
    yield made
    assert made.script("stop").returncode == 0


def lines(path: Path) -> list[dict]:
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue  # half a line
    return found


def test_a_host_whose_link_is_cut_is_left_out(own_hosts, tmp_path):
    hosts = own_hosts
    tag, folder = hosts.environ["DDL_HOSTS_TAG"], tmp_path / "run"
    addresses = Path(os.environ.get("TMPDIR", "/tmp"), f"ddl-hosts-{tag}", "hosts").read_text().split()
    real = Path(find_mpirun())
    wrapper = tmp_path / "bin" / "mpirun"
    wrapper.parent.mkdir()
    (wrapper.parent / "prterun").symlink_to(real.with_name("prterun"))
    net = addresses[0].rpartition(".")[0]
    wrapper.write_text(WRAPPER.format(mpirun=real, script=ROOT / "tests" / "cluster" / "hosts.sh", net=net))
    wrapper.chmod(0o755)
    (tmp_path / "slow.py").write_text(SLOW)
    words = [*JOB, "--train.steps=80", "--run.dir", str(folder), "--train.callbacks", '["slow:step"]']
    words += ["-n", "4", "--host", ",".join(f"{address}:2" for address in addresses), "--checkpoint.every_steps", "5"]
    with open(tmp_path / "said", "w") as said:
        job = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR.format(mpirun=str(wrapper)), *words],
            env={**hosts.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
    deadline = time.monotonic() + LIMIT_S
    try:
        while not any(line.get("step", 0) >= 12 for line in lines(folder / "metrics.jsonl")):
            assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.1)
        subprocess.run(["ip", "link", "set", f"{tag}v2", "down"], env={"PATH": SEARCH}, check=True)
        status = job.wait(max(deadline - time.monotonic(), 1.0))
    finally:
        job.terminate()
        job.wait()
    output = (tmp_path / "said").read_text()
    assert status == 0, output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["ranks_finished"] == 2, output
    assert f"no answer from {addresses[1]}" in output
    assert report(folder).is_exact
    launches = [line["launch"] for line in lines(folder / "ledger.jsonl")]
    first = launches[0]
    assert launches.index(summary["launch"]) == launches.count(first)  # nothing of the old launch after the new one's


def test_the_bench_measures_mpi_in_a_separate_program(hosts):
    words = ("--ranks", "4", "--sizes", "65536", "--seconds", "0.3", "--json", "--mpirun", f"{HERE}/hosts.sh mpirun")
    done = subprocess.run(
        [sys.executable, "-m", "ddl.bench", "allreduce", *words],
        env=hosts.environ,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for settings in ("default", "fault-tolerant"):
        auto = {row["peer"]: row for row in rows if row["algorithm"] == "auto" and row["settings"] == settings}
        assert set(auto) == {"mpi_allreduce", "mpi_allreduce_tuned", "copy", "socket"}
        assert all(row["peer_s"] > 0 and row["ours_s"] > 0 for row in auto.values())
