"""Invalid settings: each error is one line that names the setting, printed by one rank, with exit status 2."""

from __future__ import annotations

import pytest

from ddl.config import check, load, load_or_exit, override
from ddl.errors import ConfigError

BAD_WORDS = {
    "a section that there is not": (["--optmi.lr", "1"], r"no section \[optmi\]; did you mean 'optim'\?"),
    "a setting that there is not": (
        ["--comm.bucket_mb", "4"],
        r"\[comm\] has no setting 'bucket_mb'; did you mean 'bucket_mib'\?",
    ),
    "a setting below one that has none": (["--optim.lr.x", "1"], r"\[optim\] has no setting 'lr.x'"),
    "no value": (["--optim.lr"], r"--optim.lr needs a value"),
    "no value before the next": (["--optim.lr", "--run.seed", "1"], r"--optim.lr needs a value"),
    "an option of another program": (["-n", "4"], r"no option -n"),
    "two job files": (["a.toml", "b.toml"], r"two job files"),
    "a job file that there is not": (["missing.toml"], r"no job file missing.toml"),
    "text for a number": (["--optim.lr", "fast"], r"\[optim\] lr is fast: it must be a number"),
    "a fraction for a whole number": (["--train.steps", "1.5"], r"\[train\] steps is 1.5: it must be a whole number"),
    "a number for a choice": (
        ["--train.dtype", "8"],
        r"dtype is 8: it must be one of float32, float64 or float16",
    ),
    "text for yes or no": (["--data.shuffle", "maybe"], r"\[data\] shuffle is maybe"),
    "not a number": (["--optim.lr", "nan"], r"\[optim\] lr is nan"),
    "infinity": (["--optim.lr", "inf"], r"\[optim\] lr is inf"),
    "a table that is none": (["--model.options", "7"], r"\[model\] options is 7: it must be a table"),
    "an unknown schedule": (
        ["--optim.schedule", "cosinus"],
        r"schedule is cosinus: it must be one of constant, .* or cosine; did you mean 'cosine'\?",
    ),
    "a batch of no samples": (["--train.global_batch", "0"], r"\[train\] global_batch is 0"),
    "a negative rate": (["--optim.lr", "-1"], r"\[optim\] lr is -1.0: it must be at least 0"),
    "a negative rate with equals": (["--optim.lr=-1"], r"\[optim\] lr is -1.0"),
    "momentum of one": (["--optim.momentum", "1"], r"\[optim\] momentum is 1.0"),
    "beta above one": (["--optim.beta2", "1.5"], r"\[optim\] beta2 is 1.5"),
    "eps of zero": (["--optim.eps", "0"], r"\[optim\] eps is 0.0: it must be above 0"),
    "a negative seed": (["--run.seed", "-3"], r"\[run\] seed is -3"),
    "a name that is a path": (["--run.name", "a/b"], r'\[run\] name is "a/b"'),
    "an empty name": (["--run.name", ""], r"\[run\] name"),
    "pruning with norms of layers": (
        ["--optim.prune=0.5", "--optim.name=lars"],
        r"\[optim\] prune is 0.5, but name is lars, which scales its steps by the norms of layers",
    ),
    "pruning that ends before it begins": (
        ["--optim.prune=0.5", "--optim.prune_end=0.1"],
        r"\[optim\] prune_end is 0.1",
    ),
    "how to prune, and no pruning": (["--optim.prune_scope=layer"], r"\[optim\] prune_scope is set, but prune is 0"),
    "a teacher's share above one": (["--model.teacher=.", "--model.teacher_alpha=2"], r"\[model\] teacher_alpha is 2"),
    "how to teach, and no teacher": (
        ["--model.teacher_temperature=3"],
        r"\[model\] teacher_temperature is set, but teacher is not",
    ),
    "no such teacher": (["--model.teacher=missing"], r"\[model\] teacher: there is no .*missing"),
    "nothing to train": (["--train.epochs", "0"], r"nothing to train"),
    "a fraction above one": (["--data.validation", "1.5"], r"\[data\] validation is 1.5"),
    "a negative fraction": (["--data.test", "-0.1"], r"\[data\] test is -0.1"),
    "nothing left to train on": (["--data.validation", "0.5", "--data.test", "0.5"], r"nothing is left to train on"),
    "no shards": (["--data.shards", "0"], r"\[data\] shards is 0"),
    "more shards than samples in a step": (["--data.shards", "100", "--train.global_batch", "64"], r"shards is 100"),
    "more micro-batches than samples": (["--train.accumulate", "65"], r"\[train\] accumulate is 65"),
    "more micro-batches than a share": (["--data.shards", "32", "--train.accumulate", "3"], r"is 2 samples"),
    "no micro-batch": (["--train.accumulate", "0"], r"\[train\] accumulate is 0"),
    "no checkpoint kept": (["--checkpoint.keep", "0"], r"\[checkpoint\] keep is 0"),
    "a checkpoint that there is not": (["--checkpoint.resume", "/nowhere/x"], r"\[checkpoint\] resume: there is no"),
    "a run to start from that there is not": (["--model.from", "/nowhere"], r"\[model\] from: there is no /nowhere"),
    "data that is not there": (["--data.path", "/nowhere/x.npy"], r"\[data\] path: there is no /nowhere/x.npy"),
    "a test file that is not there": (["--data.test", "/nowhere/t.npz"], r"\[data\] test: there is no"),
    "a tuning table that is not there": (["--comm.tuning", "/nowhere"], r"\[comm\] tuning: there is no"),
    "a bucket of nothing": (["--comm.bucket_mib", "0"], r"\[comm\] bucket_mib is 0.0"),
    "more than a GPU": (["--comm.gpu_memory", "1.5"], r"\[comm\] gpu_memory is 1.5, more than all of it"),
    "patience without validation": (["--train.patience", "3", "--data.validation", "0"], r"patience is 3"),
    "a step schedule without steps": (["--optim.schedule", "step"], r"step_every is 0"),
    "a floor above the rate": (["--optim.lr", "0.1", "--optim.min_lr", "0.2"], r"min_lr is 0.2, above lr"),
    "a warm-up longer than the job": (["--train.steps", "5", "--optim.warmup_steps", "6"], r"warmup_steps is 6"),
    "nesterov without momentum": (["--optim.nesterov", "true"], r"nesterov .*momentum"),
    "a callback that names nothing": (["--train.callbacks", "mine"], r'callbacks has "mine"'),
    "no patience with hangs": (["--fault.hang_timeout_s", "0"], r"\[fault\] hang_timeout_s is 0.0"),
    "a setting without its section": (["--lr", "1"], r"no section \[lr\]; did you mean optim.lr\?"),
    "a setting of two sections": (["--name", "x"], r"did you mean run.name, model.name or optim.name\?"),
    "a dash of a word processor": (["\u2013-train.steps", "3"], r"typographic dash: write --train.steps"),
    "a dash instead of two": (["\u2014train.steps=3"], r"typographic dash: write --train.steps"),
    "a setting as in a job file": (["optim.lr=1"], r"no job file optim.lr=1"),
    "a value with a unit": (["--train.epochs", "10k"], r"\[train\] epochs is 10k: it must be a whole number"),
    "a comma in a number": (["--optim.lr", "0,1"], r"\[optim\] lr is 0,1: it must be a number"),
    "nothing behind the equals sign": (["--train.epochs="], r'\[train\] epochs is "": it must be a whole number'),
    "a table without braces": (["--model.options", "hidden=[64]"], r"options is hidden=\[64\]: it must be a table"),
    "float16 for an optimizer that squares": (["--train.dtype", "float16"], r"float16 .*use sgd or momentum"),
    "a trace in a folder that there is not": (["--metrics.trace", "no/t.json"], r"trace: there is no folder .*/no"),
    "a trace that is a folder": (["--trace", "."], r"trace: . is a folder"),
    "another package's name of a setting": (
        ["--optim.learning_rate", "1"],
        r"no setting 'learning_rate'; did you mean 'lr'\?",
    ),
    "another package's option": (["--batch_size", "32"], r"did you mean train.global_batch\?"),
    "an option that counts GPUs": (["--gpus", "2"], r"did you mean comm.device\?"),
    "a misspelled setting without its section": (["--epoch", "3"], r"did you mean train.epochs\?"),
    "a setting of another section": (["--train.lr", "1"], r"\[train\] has no setting 'lr'; did you mean optim.lr\?"),
    "a setting of another section, like one of this": (["--optim.epochs", "3"], r"did you mean train.epochs\?"),
    "another package's name of a setting of another section": (
        ["--train.learning_rate", "1"],
        r"\[train\] has no setting 'learning_rate'; did you mean optim.lr\?",
    ),
    "targets without a file": (["--data.targets", "-1,-2"], r"\[data\] targets is -1,-2, but source is digits"),
    "a section for a setting": (["--model", "mlp"], r"model is a section of settings.*did you mean model.name\?"),
    "a name unlike any other": (["--comm.xyz", "1"], r"\[comm\] has no setting 'xyz'; it has algorithm, bucket_mib, "),
    "a run named like the folder above": (["--run.name", ".."], r'\[run\] name is "..": it must be a plain file name'),
    "short gradients of another type": (
        ["--comm.wire", "int8", "--train.dtype", "float64"],
        r"\[comm\] wire is int8, but \[train\] dtype is float64",
    ),
    "short gradients on one node": (["--comm.wire", "int8"], r"wire is int8, but 1 rank was started on one node"),
    "short gradients by an algorithm that has none": (
        ["--comm.wire", "bfloat16", "--comm.algorithm", "ring"],
        r"wire is bfloat16, but algorithm is ring",
    ),
    "no rank needed": (["--fault.min_ranks", "0"], r"\[fault\] min_ranks is 0"),
}
BAD_FILES = {
    "not TOML": ("[train\nsteps = 1", r"is not TOML"),
    "an unknown section": ("[trian]\nsteps = 1", r"job.toml: there is no section \[trian\]; did you mean 'train'\?"),
    "an unknown setting": ("[train]\nstep = 1", r"\[train\] has no setting 'step'; did you mean 'steps'\?"),
    "a setting outside a section": ("train = 5", r"train is a section"),
    "a string for a number": ('[optim]\nlr = "0.1"', r'\[optim\] lr is "0.1": it must be a number'),
    "a number for a string": ("[run]\nname = 5", r"\[run\] name is 5: it must be a string"),
    "yes for a number": ("[train]\nsteps = true", r"\[train\] steps is true: it must be a whole number"),
    "a number for yes": ("[data]\nshuffle = 1", r"\[data\] shuffle is 1: it must be true or false"),
    "a list of numbers for names": (
        "[data]\naugment = [1]",
        r"\[data\] augment is \[1\]: it must be a list of strings",
    ),
    "a setting of no section": ("steps = 1", r"no section \[steps\]; did you mean train.steps\?"),
    "a section twice": ("[train]\nsteps = 1\n[train]\nepochs = 1", r"is not TOML: Cannot declare .*train"),
    "JSON": ('{"train": {"steps": 1}}', r"is not TOML"),
    "data beside the job that is not there": ('[data]\npath = "x.npy"', r"\[data\] path: there is no .*x.npy"),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_an_invalid_command_line_is_reported_by_its_setting(case, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words, expected = BAD_WORDS[case]
    with pytest.raises(ConfigError, match=expected):
        load(words)


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_invalid_job_file_is_reported_by_its_setting(case, tmp_path):
    text, expected = BAD_FILES[case]
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load([str(tmp_path / "job.toml")])


@pytest.mark.parametrize(
    ("words", "ranks", "expected"),
    [
        (["--data.shards", "2"], 4, r"\[data\] shards is 2, but 4 ranks were started"),
        (["--fault.spares", "2"], 2, r"\[fault\] spares is 2, but only 2 ranks"),
        (["--fault.min_ranks", "5"], 4, r"\[fault\] min_ranks is 5, but only 4 ranks"),
    ],
)
def test_a_job_that_does_not_fit_its_number_of_ranks_is_refused(words, ranks, expected, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(ranks))
    with pytest.raises(ConfigError, match=expected):
        load(words)


def test_spares_need_no_shard(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert load(["--data.shards", "2", "--fault.spares", "2"]).data.shards == 2


def test_a_resumed_job_may_have_fewer_shards_than_ranks(tmp_path):
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    job = load(["--data.shards", "2", "--run.dir", str(tmp_path)])
    assert check(job, ranks=4) is job
    with pytest.raises(ConfigError, match="shards is 2"):
        check(override(job, {"checkpoint.resume": "none"}), ranks=4)


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0), (3, 0)])
def test_one_rank_prints_one_line_and_all_exit_with_status_2(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    monkeypatch.setattr("ddl.environment.LINGER_S", 0)
    with pytest.raises(SystemExit) as end:
        load_or_exit(["--comm.bucket_mb", "4"])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == "" and len(said.err.splitlines()) == lines
    assert not lines or said.err == "ddl.train: [comm] has no setting 'bucket_mb'; did you mean 'bucket_mib'?\n"
