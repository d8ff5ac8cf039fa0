"""Values that are not finite, and ranks whose states have come apart."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on the path"),
]

# Changes a number in the state of some ranks, as a memory error would.
FLIP = """
import os, sys
from ddl.train.step import Step
from ddl.train.__main__ import main

run = Step.run

def flipping(self, *args):
    outcome = run(self, *args)
    if outcome.step == 6 and os.environ["OMPI_COMM_WORLD_RANK"] in os.environ["FLIP"].split(","):
        self.state.params.flat[17] *= 1.0000001
    return outcome

Step.run = flipping
raise SystemExit(main())
"""


# Files with nonfinite values are rejected, so an augmentation of the user has to produce them.
SPOIL = """
import numpy as np

class Spoil:
    def __call__(self, batch, segments, generators):
        (name,) = [name for name in batch if batch[name].ndim == 2]
        return {**batch, name: np.where(batch[name] == 12345, np.nan, batch[name])}
"""


def rows(folder, bad):
    """600 samples, of which those numbered ``bad`` become NaN on their way."""
    (folder / "spoil.py").write_text(SPOIL)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8))
    y = (x[:, 0] > 0).astype(np.int64)
    x[bad, 3] = 12345
    np.savez(folder / "rows.npz", x=x, y=y)
    words = ["--data.source", "files", "--data.path", str(folder / "rows.npz"), "--data.normalize", "none"]
    return [*words, "--data.augment", '["spoil:Spoil"]', "--optim.name", "sgd", "--optim.lr", "1e-12"]


def test_a_poisoned_sample_is_skipped_by_all_and_its_shard_named(jobs):
    words = [*rows(jobs.folder, [100]), "--train.global_batch", "64", "--data.validation", "0", "--data.test", "0"]
    ended = jobs.run(*words, n=3)
    assert ended.status == 0, ended.said
    skipped = [event for event in ended.of("step") if event["skipped"]]
    epochs = ended.summary["epochs"]
    assert int(epochs) <= len(skipped) <= epochs + 1  # once per epoch
    messages = [line["message"] for line in ended.of("warning")]
    named = {shards[1] for message in messages if (shards := re.search(r"(shards? \d+(, \d+)*( and \d+)?)", message))}
    assert len(named) == 1 and re.fullmatch(r"shard \d+", named.pop())
    assert any(message.startswith("nothing was learned") for message in messages)  # at that learning rate
    assert ended.summary["samples"]["skipped"] == 64 * len(skipped)
    assert np.isfinite([event["loss"] for event in ended.of("step") if not event["skipped"]]).all()


def test_too_many_skipped_steps_end_the_job(jobs):
    words = [*rows(jobs.folder, list(range(600))), "--fault.skip_limit", "4"]
    ended = jobs.run(*words, n=2)
    assert ended.status == 1 and "4 steps in a row were not finite" in ended.summary["error"], ended.said


@pytest.mark.parametrize("flipped", ["2", "0"])
def test_a_flipped_bit_is_healed_from_the_majority(flipped, jobs, calm):
    (jobs.folder / "flip.py").write_text(FLIP)
    ended = jobs.run("--fault.check_every", "3", program=("flip.py",), environ={"FLIP": flipped})
    assert ended.status == 0, ended.said
    (warning,) = [line["message"] for line in ended.of("warning") if "different state" in line["message"]]
    assert f"rank {flipped} held" in warning
    assert ended.summary["parameters_sha256"] == calm.summary["parameters_sha256"]


def test_two_halves_that_differ_stop_the_job(jobs):
    (jobs.folder / "flip.py").write_text(FLIP)
    ended = jobs.run("--fault.check_every", "3", program=("flip.py",), environ={"FLIP": "0,1"})
    assert ended.status == 1 and "no majority" in ended.summary["error"], ended.said
