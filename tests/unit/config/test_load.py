"""Settings from files and arguments, their order of precedence, and writing them back as TOML."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddl.config import Job, load, load_or_exit, override, read, to_toml, write
from ddl.config.sections import SECTIONS
from ddl.errors import ConfigError


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "jobs" / "job.toml"
    path.parent.mkdir()

    def make(text: str) -> str:
        path.write_text(text)
        return str(path)

    return make


def test_without_arguments_a_job_has_the_defaults():
    assert load([]) == Job()


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(job_file):
    path = job_file("[optim]\nlr = 0.5\nmomentum = 0.8\n")
    job = load([path, "--optim.lr", "0.25"])
    assert (job.optim.lr, job.optim.momentum, job.optim.beta1) == (0.25, 0.8, Job().optim.beta1)


def test_the_words_may_come_before_the_file(job_file):
    assert load(["--train.steps=7", job_file("[train]\nsteps = 3\n")]).train.steps == 7


@pytest.mark.parametrize(
    ("words", "section", "field", "value"),
    [
        (["--optim.lr", "1e-3"], "optim", "lr", 1e-3),
        (["--optim.lr", "1"], "optim", "lr", 1.0),
        (["--data.shards", "12"], "data", "shards", 12),
        (["--data.shards", "auto"], "data", "shards", "auto"),
        (["--data.shuffle", "off"], "data", "shuffle", False),
        (["--data.augment", "shift:1,flip"], "data", "augment", ("shift:1", "flip")),
        (["--data.augment", '["shift:1", "flip"]'], "data", "augment", ("shift:1", "flip")),
        (["--model.freeze", ""], "model", "freeze", ()),
        (["--data.validation", "0.25"], "data", "validation", 0.25),
        (["--model.options", "{hidden = [8, 4]}"], "model", "options", {"hidden": [8, 4]}),
        (["--model.options.hidden", "[8, 4]"], "model", "options", {"hidden": [8, 4]}),
        (["--model.options.a.b", "1", "--model.options.a.c", "text"], "model", "options", {"a": {"b": 1, "c": "text"}}),
        (["--optim.groups", '[{match = "conv*", lr = 0.1}]'], "optim", "groups", ({"match": "conv*", "lr": 0.1},)),
        (["--data.targets", "-1,-2", "--data.source", "files"], "data", "targets", "-1,-2"),
        (["--model.options.shift", "-2"], "model", "options", {"shift": -2}),
        (["--optim.lr", ".5"], "optim", "lr", 0.5),
        (["--data.test", ".5"], "data", "test", 0.5),
        (["--optim.min_lr", ".5"], "optim", "min_lr", 0.5),
        (["--trace", "t.json"], "metrics", "trace", "t.json"),
        (["--chaos", "kill rank 1 at step 3"], "fault", "chaos", "kill rank 1 at step 3"),
        (["--train.callbacks", "my.module:Name"], "train", "callbacks", ("my.module:Name",)),
    ],
)
def test_a_word_is_read_as_the_type_of_its_setting(words, section, field, value):
    got = getattr(getattr(load(words), section), field)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text", ["5", "0.3", "true", "null", "[1]", "a,b", "~", "-"])
def test_a_string_in_a_file_stays_a_string_wherever_one_is_allowed(job_file, text):
    job = load([job_file(f'[run]\nname = "{text}"\n[model]\noptions = {{ a = "{text}", b = {{ c = ["{text}"] }} }}\n')])
    assert (job.run.name, job.model.options) == (text, {"a": text, "b": {"c": [text]}})
    assert override(Job(), {"model.options": {"a": text}}).model.options == {"a": text}


@pytest.mark.parametrize("text", ["5", "null", "[1]", "a,b", "~", "-"])
def test_a_command_line_string_stays_a_string_where_only_one_is_allowed(text):
    job = load(
        ["--run.name", text, "--model.options", f'{{a = "{text}"}}', "--optim.groups", f'[{{match = "{text}"}}]']
    )
    assert (job.run.name, job.model.options, job.optim.groups) == (text, {"a": text}, ({"match": text},))


def test_settings_do_not_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("DDL_TRAIN_OPTIM__LR", "0.5")
    assert load([]) == Job()


def test_model_from_is_written_without_the_underscore_of_python(tmp_path, job_file):
    assert load(["--model.from", str(tmp_path)]).model.from_ == str(tmp_path)
    assert load([job_file(f'[model]\nfrom = "{tmp_path}"\n')]).model.from_ == str(tmp_path)


def test_paths_in_a_job_file_are_relative_to_it_and_paths_in_arguments_to_the_current_folder(
    tmp_path, job_file, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = job_file('[data]\npath = "x.npy"\n')
    (tmp_path / "jobs" / "x.npy").touch()
    (tmp_path / "y.npy").touch()
    job = load([path, "--data.targets", "y.npy"])
    assert job.data.path == str(tmp_path / "jobs" / "x.npy")
    assert job.data.targets == str(tmp_path / "y.npy")
    assert load(["--run.dir", "out"]).run.dir == "out"


def test_a_split_may_be_a_file(tmp_path):
    (tmp_path / "held.npz").touch()
    assert load(["--data.test", str(tmp_path / "held.npz")]).data.test == str(tmp_path / "held.npz")


def test_a_path_of_samples_implies_the_source_files_and_names_the_run(tmp_path, job_file):
    (tmp_path / "my iris.csv").touch()
    job = load(["--data.path", str(tmp_path / "my iris.csv")])
    assert (job.data.source, job.run.name) == ("files", "my-iris")
    job = load(
        [job_file('[run]\nname = "mine"\n[data]\nsource = "package.module:Name"\n'), "--data.path", str(tmp_path)]
    )
    assert (job.data.source, job.run.name) == ("package.module:Name", "mine")
    (tmp_path / "orders.csv.gz").touch()
    assert load(["--data.path", str(tmp_path / "orders.csv.gz")]).run.name == "orders"


@pytest.mark.parametrize(
    ("source", "name"), [("digits", "digits"), ("diabetes", "diabetes"), ("package.mine:Waves", "Waves")]
)
def test_a_run_without_a_name_is_called_like_its_data(source, name):
    assert load(["--data.source", source]).run.name == name


def test_a_tilde_is_the_home_folder(tmp_path, job_file, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.npy").touch()
    job = load([job_file('[run]\ndir = "~/run"\n[data]\npath = "~/x.npy"\n'), "--metrics.trace", "~/t.json"])
    assert job.run.dir == str(tmp_path / "run")
    assert (job.data.path, job.metrics.trace) == (str(tmp_path / "x.npy"), str(tmp_path / "t.json"))


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    job = override(Job(), {"train.steps": np.int64(3), "optim.lr": np.float32(0.5)})
    assert (job.train.steps, job.optim.lr) == (3, 0.5) and type(job.train.steps) is int


def test_a_written_job_reads_back_equal(tmp_path):
    job = load(
        [
            *("--model.options", '{hidden = [8], name = "ä\\"\\\\"}'),
            *("--optim.groups", '[{match = "*.bias", lr = 0.1}]'),
            *("--data.augment", "shift:1"),
            *("--run.name", "quote'd"),
        ]
    )
    write(job, tmp_path / "config.toml")
    assert read(tmp_path / "config.toml") == job
    assert list(tmp_path.iterdir()) == [tmp_path / "config.toml"]


@given(st.floats(0, allow_infinity=False), st.text(), st.lists(st.text()), st.integers(0, 2**62))
def test_any_value_survives_toml(tmp_path_factory, number, text, words, whole):
    path = tmp_path_factory.mktemp("job") / "config.toml"
    job = Job()
    for name, section, value in [("lr", "optim", number), ("name", "optim", text), ("seed", "run", whole)]:
        object.__setattr__(getattr(job, section), name, value)
    object.__setattr__(job.data, "augment", tuple(words))
    write(job, path)
    assert read(path) == job


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[data]\nbatch_eval = 0", "batch_eval is 0"),
        ("[optim]\nlr = nan", "lr is nan"),
        ("[run]\nseed = 1\nseed = 2", "not TOML"),
        ("[model]\noptions = " + "{a = " * 2000 + "1" + "}" * 2000, "not TOML"),
        ("[model.options]\nunits = 1" + "0" * 5000, "not TOML"),
    ],
)
def test_a_saved_job_with_impossible_values_is_refused_in_one_line(tmp_path, text, says):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        read(tmp_path / "config.toml")
    assert "\n" not in str(refused.value)


def test_a_saved_job_is_read_where_its_name_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text('[run]\nname = "実験"\n', encoding="utf-8")

    def lacks(text):
        raise UnicodeEncodeError("ascii", text, 0, 1, "no such character")

    monkeypatch.setattr(os, "fsencode", lacks)
    assert read(tmp_path / "config.toml").run.name == "実験"


def test_override_gives_another_checked_job():
    job = Job()
    changed = override(job, {"train.steps": 5, "optim.lr": 1})
    assert (changed.train.steps, changed.optim.lr) == (5, 1.0)
    assert job == Job()
    with pytest.raises(ConfigError, match="global_batch"):
        override(job, {"train.global_batch": 0})


def test_a_job_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Job().optim.lr = 1.0  # type: ignore[misc]


def test_help_names_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        load_or_exit(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, section in SECTIONS.items():
        for field in fields(section):
            assert f"--{name}.{field.name.rstrip('_')} " in text
            assert field.metadata["meaning"] in text
    assert text.count("; default: ") == sum(len(fields(section)) for section in SECTIONS.values())
    assert "(a number; default: 0.1)" in text and "(a list of strings; default: none)" in text
    assert "(one of constant, step, linear or cosine; default: cosine)" in text
    assert "(true or false; default: true)" in text and "(a whole number or auto; default: auto)" in text


@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        load_or_exit(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= min(columns, 118)


def test_print_config_is_a_job_file(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        load_or_exit(["--train.steps", "3", "--print_config"])
    assert end.value.code == 0
    (tmp_path / "job.toml").write_text(capsys.readouterr().out)
    assert load([str(tmp_path / "job.toml")]).train.steps == 3


def test_toml_of_a_job_has_every_section():
    assert [line[1:-1] for line in to_toml(Job()).splitlines() if line.startswith("[") and "." not in line] == list(
        SECTIONS
    )


def test_a_job_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "job.toml").write_bytes(b"\xef\xbb\xbf[train]\nsteps = 3\n")
    assert load([str(tmp_path / "job.toml")]).train.steps == 3
