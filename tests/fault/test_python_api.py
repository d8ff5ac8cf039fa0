"""Scripts that use ddl from Python: alone, under mpirun, where deaths are survived; each ends with its own status."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]
LAUNCHES = {
    "alone": (1, []),
    "mpirun": (2, ["mpirun", "-n", "2"]),
    "mpirun --with-ft ulfm": (2, ["mpirun", "--with-ft", "ulfm", "-n", "2"]),
}

TRAINER = """
import os, signal, sys
import numpy as np, ddl
random = np.random.default_rng(0)
x = random.normal(size=(120, 4)); y = (x[:, 0] > 0).astype("int64")

def make(**changes):
    usual = {"model": ddl.models.MLP([4, 8, 2]), "data": (x, y), "global_batch": 16}
    return ddl.Trainer(loss="cross_entropy", optimizer=ddl.optim.Adam(lr=1e-2), **{**usual, **changes},
                       settings={"run.dir": "run", "metrics.console_every_s": 0, "train.dtype": "float64"})
"""
WORLD = """
import sys
import numpy as np, ddl
ddl.init()
rank, size = ddl.rank(), ddl.size()
"""


def start(launch, code, folder, limit_s=150):
    """Output of a script. Each process prints its exit status as its last line, since mpirun's proves nothing."""
    ranks, launcher = LAUNCHES[launch]
    (folder / "script.py").write_text(code)
    environ = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"}
    command = [*launcher, "bash", "-c", '"$0" script.py; echo "status $?"', sys.executable]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=limit_s)
    return ranks, done.stdout, done.stderr


def count(text, line):
    return text.splitlines().count(line)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_script_trains_resumes_predicts_and_exits_by_itself(launch, tmp_path):
    code = """
run = make(validation=(x[:40], y[:40]))
first = run.fit(epochs=3)
second = run.fit(epochs=6)
found = run.evaluate((x, y))
assert first["steps"] == 24 and second["steps"] == 48 and second["status"] == "finished"
assert found["samples"] == 120 and run.predict(x[:7]).shape[0] == 7
total = sum(float(value.sum()) for value in run.params.values())
assert len(set(run.group.gather_objects(total))) == 1
print("good", run.group.size)
"""
    ranks, out, err = start(launch, TRAINER + code, tmp_path)
    assert count(out, f"good {ranks}") == count(out, "status 0") == ranks, out + err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_one_trainer_after_another_and_a_loop_of_your_own_share_ranks_and_end(launch, tmp_path):
    code = """
first = make()
first.fit(steps=4)
second = ddl.Trainer(model=ddl.models.MLP([4, 8, 2]), data=(x, y), global_batch=16, optimizer=ddl.optim.SGD(lr=1e-9),
                     settings={"run.dir": "fine", "metrics.console_every_s": 0, "train.dtype": "float64",
                               "model.from": str(first.folder)})
second.fit(steps=2)
close = all(np.allclose(value, second.params[name], atol=1e-6) for name, value in first.params.items())
again = first.fit(steps=6)
assert second.group is first.group is ddl.init()
pids = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
companions = [pid for pid in pids if b"companion" in open(f"/proc/{pid}/cmdline", "rb").read()]
print("good", close, again["steps"], ddl.allreduce(np.ones(2), average=False)[0], len(companions))
"""
    ranks, out, err = start(launch, TRAINER + code, tmp_path)
    assert count(out, f"good True 6 {ranks:.1f} 1") == count(out, "status 0") == ranks, out + err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_trainer_after_init_works_in_its_group(launch, tmp_path):
    code = """
group = ddl.init()
run = make()
run.fit(steps=4)
assert run.group is group
from ddl.errors import UserError
try:
    ddl.Trainer(model=ddl.models.MLP([4, 8, 2]), data=(x, y),
                settings={"fault.tolerance": "on", "metrics.console_every_s": 0}).fit(steps=1)
except UserError as error:
    print("refused", "fault.tolerance is on" in str(error))
print("good", ddl.allreduce(np.ones(1), average=False)[0])
"""
    ranks, out, err = start(launch, TRAINER + code, tmp_path)
    assert count(out, "refused True") == count(out, f"good {ranks:.1f}") == count(out, "status 0") == ranks, out + err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_script_chooses_its_status(launch, tmp_path):
    ranks, out, err = start(launch, TRAINER + "make().fit(steps=3)\nsys.exit(3)\n", tmp_path)
    assert "status 3" in out and (launch == "mpirun" or count(out, "status 3") == ranks), out + err
    assert "Traceback" not in err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_an_exception_of_the_script_ends_it_with_a_traceback(launch, tmp_path):
    _, out, err = start(launch, TRAINER + "make().fit(steps=3)\nraise ValueError('mine')\n", tmp_path)
    assert "ValueError: mine" in err and "status 0" not in out, out + err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_invalid_arguments_raise_on_every_rank(launch, tmp_path):
    code = """
from ddl.errors import UserError
try:
    ddl.Trainer(model="nonesuch", data=(x, y))
except UserError as error:
    print("refused", "nonesuch" in str(error))
run = make()
run.fit(steps=3)
try:
    run.fit(epochs=0)
except UserError as error:
    print("refused", "nothing to train" in str(error))
print("steps", run.fit(steps=5)["steps"])
"""
    ranks, out, err = start(launch, TRAINER + code, tmp_path)
    assert count(out, "refused True") == 2 * ranks, out + err
    assert count(out, "steps 5") == count(out, "status 0") == ranks, out + err


def test_a_death_in_the_first_fit_is_survived_and_the_second_fit_continues(tmp_path):
    code = """
rank = os.environ["OMPI_COMM_WORLD_RANK"]
def strike(outcome):
    if outcome.step == 4 and rank == "0":
        os.kill(os.getpid(), signal.SIGKILL)
run = make(callbacks=[strike])
one = run.fit(steps=8)
two = run.fit(steps=12)
other = ddl.Trainer(model=ddl.models.MLP([4, 8, 2]), data=(x, y), settings={"metrics.console_every_s": 0})
three = other.fit(steps=2)
found = [one["steps"], two["steps"], three["steps"], three["failures"]]
print("survived", *found, other.group.size, [f["rank"] for f in one["failures"]])
"""
    _, out, err = start("mpirun --with-ft ulfm", TRAINER + code, tmp_path)
    assert count(out, "survived 8 12 2 [] 1 [0]") == 1 and count(out, "status 0") == 1, out + err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_loop_of_your_own(launch, tmp_path):
    code = """
assert ddl.local_rank() == rank and size == ddl.allreduce(np.ones(3), average=False)[0]
assert np.array_equal(ddl.allreduce(np.full((2, 3), rank)), np.full((2, 3), (size - 1) / 2))
weights = {"w": np.full(4, float(rank)), "b": np.full((1, 2), rank + 5.0)}
ddl.broadcast(weights, root=size - 1)
assert np.array_equal(weights["w"], np.full(4, size - 1.0))
assert np.array_equal(weights["b"], np.full((1, 2), size + 4.0))
optimizer = ddl.DistributedOptimizer(ddl.optim.SGD(lr=1.0), weights)
optimizer.step({"w": np.full(4, 2.0 * rank), "b": np.ones((1, 2))})
assert np.allclose(weights["w"], size - 1.0 - (size - 1)) and np.allclose(weights["b"], size + 3.0)
try:
    ddl.broadcast({"w": np.zeros(3 + rank)})
    assert size == 1
except ValueError as error:
    assert "different calls" in str(error) and "(3,)" in str(error) and "(4,)" in str(error)
assert ddl.init() is ddl.init()
print("good", size)
"""
    ranks, out, err = start(launch, WORLD + code, tmp_path)
    assert count(out, f"good {ranks}") == count(out, "status 0") == ranks, out + err


UNEVEN = {
    "steps": (
        "for _ in range(8 - 3 * rank):\n    optimizer.step({'w': np.ones(3)})",
        "DistributedOptimizer.step(w: (3,)",
    ),
    "skipped": ("for i in range(8):\n    if rank == 0 or i != 4:\n        ddl.allreduce(np.ones(3))", "allreduce(mean"),
    "ended": ("if rank:\n    sys.exit(0)\nddl.broadcast({'w': np.ones(3)})", "broadcast(from 0"),
}


@pytest.mark.parametrize(
    ("loop", "launch"), [*((loop, "mpirun") for loop in UNEVEN), ("steps", "mpirun --with-ft ulfm")]
)
def test_a_loop_that_is_longer_on_one_rank_ends_with_a_line_about_the_waiting_ranks(loop, launch, tmp_path):
    code, call = UNEVEN[loop]
    setup = "optimizer = ddl.DistributedOptimizer(ddl.optim.SGD(lr=0.1), {'w': np.zeros(3)})\n"
    _, out, err = start(launch, WORLD + setup + code, tmp_path)
    assert f"rank 0 {call}" in err and "rank 1 ended its script" in err, out + err
    assert "status 0" not in out and count(out, "status 1") >= 1, out + err


@pytest.mark.parametrize("late", ["while True: pass", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_a_rank_that_stays_in_its_own_code_ends_all_with_a_line_that_says_so(late, tmp_path):
    code = f"""
import os, signal, ddl, numpy as np
ddl.init(timeout_s=2)
for number in range(3):
    if ddl.rank() == 1 and number == 2:
        {late}
    ddl.allreduce(np.ones(3))
"""
    _, out, err = start("mpirun", code, tmp_path)
    assert err.count("the ranks have waited ") == 1 and count(out, "status 1") >= 1 and "status 0" not in out, out + err
    assert "rank 0 waits in call 3, allreduce(mean, shape (3,), float64)" in err, err
    assert "rank 1 is in its own code after call 2, allreduce(" in err, err


@pytest.mark.parametrize("launch", ["alone", "mpirun"])
def test_a_join_block_lets_loops_be_uneven(launch, tmp_path):
    code = """
params = {"w": np.zeros(3)}
optimizer = ddl.DistributedOptimizer(ddl.optim.SGD(lr=0.5), params)
with ddl.join(optimizer):
    for number in range(8 - 3 * rank):
        optimizer.step({"w": np.full(3, 1.0 + rank)})
        mean = ddl.allreduce(np.float64(rank))
assert np.allclose(params["w"], -0.5 * (5 * (1 + size) / 2 + 3)) and optimizer.steps == 8
assert mean == (0.0 if rank == 0 else 0.5)
assert ddl.allreduce(np.float64(rank)) == (size - 1) / 2
print("good")
"""
    ranks, out, err = start(launch, WORLD + code, tmp_path)
    assert count(out, "good") == count(out, "status 0") == ranks, out + err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_an_exception_in_a_loop_of_your_own_on_one_rank_ends_all(launch, tmp_path):
    code = "if rank == 0:\n    raise ValueError('mine')\nddl.allreduce(np.ones(3))\n"
    _, out, err = start(launch, WORLD + code, tmp_path)
    assert "ValueError: mine" in err and "status 0" not in out, out + err


def test_rank_and_size_are_known_only_after_init(tmp_path):
    code = "import ddl\ntry:\n    ddl.rank()\nexcept ddl.errors.DdlError as error:\n    print(error)\n"
    _, out, _ = start("alone", code, tmp_path)
    assert "call ddl.init() first" in out


def test_an_error_common_to_all_ranks_is_printed_once_and_sets_the_status(tmp_path):
    code = """
def strike(outcome):
    if outcome.step == 4 and os.environ["OMPI_COMM_WORLD_RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
settings = {"run.dir": "other", "metrics.console_every_s": 0, "fault.min_ranks": 2}
ddl.Trainer(model=ddl.models.MLP([4, 8, 2]), data=(x, y), settings=settings, callbacks=[strike]).fit(steps=8)
"""
    _, out, err = start("mpirun --with-ft ulfm", TRAINER + code, tmp_path)
    assert count(out, "status 75") == 1, out + err
    assert err.count("1 rank is left, fault.min_ranks is 2") == 1 and "Traceback" not in err, out + err


DISAGREEMENTS = {
    "batches": ("run = make(global_batch=16 + 16 * rank)", "[train] global_batch is 16 on rank 0 and 32 on rank 1"),
    "initial values": (
        "run = make(initial={'dense1.bias': np.full(8, rank)})",
        "the digest of the given initial values is",
    ),
    "seeds": ("run = make(seed=rank)", "[run] seed is 0 on rank 0 and 1 on rank 1"),
    "samples": (
        "run = make(data=(x[rank:], y[rank:]))",
        "the number of train samples is 120 on rank 0 and 119",
    ),
    "models": (
        "run = make(model=ddl.models.MLP([4, 8 + rank, 2]))",
        '"units": 8}',
    ),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_ranks_of_a_script_that_disagree_all_raise_the_same_line(case, tmp_path):
    change, message = DISAGREEMENTS[case]
    code = f"""
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
{change}
try:
    run.fit(steps=2)
except ddl.errors.ConfigError as error:
    print("refused:", error)
    raise
"""
    ranks, out, err = start("mpirun", TRAINER + code, tmp_path)
    refusals = [line for line in out.splitlines() if line.startswith("refused: ")]
    assert len(refusals) == ranks and len(set(refusals)) == 1, out + err
    assert message in refusals[0] and count(out, "status 2") == ranks


@pytest.mark.parametrize("launch", LAUNCHES)
def test_ctrl_c_ends_a_script_after_the_step_with_one_line_and_75(launch, tmp_path):
    code = "def step(done):\n    if done.step == 3: os.kill(os.getpid(), signal.SIGINT)\n"
    ranks, out, err = start(launch, TRAINER + code + "make(callbacks=[step]).fit(epochs=5)\nprint('after')", tmp_path)
    assert "Traceback" not in err and "after" not in out
    assert count(out, "status 75") == ranks, out + err
    assert count(err, "script.py: training was asked to stop after step 4; call fit() again to resume") == 1, err
