"""Every setting has an effect: tiny jobs whose settings record who reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

from ddl.config.sections import SECTIONS

# Each section becomes a subclass that records which of its fields are read. Reads by the settings' own modules
# (checks, config.toml) and by dataclasses do not count: they look at every field and use none.
PROGRAM = """
import json, sys
from dataclasses import fields
import ddl.config, ddl.launch
from ddl.config import Job, load
from ddl.config.sections import SECTIONS
from ddl.launcher.slurm import BatchJob
from ddl.run.runner import run

reads = set()

def recording(section, kind):
    names = {field.name for field in fields(kind)}

    def read(self, name):
        if name in names:
            reader = sys._getframe(1).f_globals["__name__"]
            if not reader.startswith(("ddl.config", "dataclasses", "copy")):
                reads.add(f"{section}.{name}")
        return object.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": read})

kinds = {section: recording(section, kind) for section, kind in SECTIONS.items()}
common = ["--train.steps", "2", "--train.compiled", "off", "--metrics.console_every_s", "0", "--model.name", "mlp"]
for number, words in enumerate(json.loads(sys.argv[1])):
    job = load([*common, "--run.dir", f"run-{number}", *words])
    recorded = {}
    for section, kind in kinds.items():
        plain = getattr(job, section)
        recorded[section] = kind(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    assert run(Job(**recorded)) == 0
ddl.config.load = lambda words, ranks: Job(**recorded)  # the launcher reads those of [slurm]
ddl.launch.from_words([])
with BatchJob("7", Job(**recorded), []):
    pass
print(json.dumps(sorted(reads)))
"""
JOBS = [
    [],
    ["--optim.name=momentum", "--model.from=run-0", "--model.strict=false", "--model.options.hidden=[8, 128]"],
    ["--model.teacher=run-0", "--optim.prune=0.5"],
    ["--optim.name=rmsprop", "--train.steps=0", "--train.epochs=1"],
]


def test_every_setting_is_read_by_a_job(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(JOBS)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    reads = set(json.loads(done.stdout.splitlines()[-1]))
    settings = {f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in fields(kind)}
    assert settings - reads == set()
