"""Words typed by mistake, or brought along from other packages: the error names the right one in one line."""

from __future__ import annotations

import importlib
import runpy
import sys

import pytest

from ddl.version import __version__

TRAIN = {  # words of ddl.train -> what the line must say
    "job.toml": "did you mean 'train'?",  # [trian]
    "jop.toml": "did you mean 'job.toml'?",
    "--train.epoch 3": "did you mean 'epochs'?",
    "--epoch 3": "did you mean train.epochs?",
    "--train.max_epochs 3": "did you mean 'epochs'?",
    "--learning_rate 0.1": "did you mean optim.lr?",
    "--optim.learning_rate 0.1": "did you mean 'lr'?",
    "--lr 0.1": "did you mean optim.lr?",
    "--seed=3": "did you mean run.seed?",
    "--resume": "did you mean checkpoint.resume?",
    "--batch_size 32": "did you mean train.global_batch?",
    "--batch-size 32": "did you mean train.global_batch?",
    "--gpus 2": "did you mean comm.device?",
    "--num_workers 4": "did you mean data.prefetch?",
    "--output_dir x": "did you mean run.dir?",
    "--train.amp mixed": "did you mean 'precision'?",
    "--train.dtype fp16": "did you mean 'float16'?",
    "--optim.scheduler cosine": "did you mean 'schedule'?",
    "--optim.schedule cosin": "one of constant, step, linear or cosine; did you mean 'cosine'?",
    "--optim.grad_clip 1": "did you mean 'clip_norm'?",
    "--checkpoint.every 5": "did you mean 'every_s'?",
    "--fault.spare 1": "did you mean 'spares'?",
    "--metrics.tensorbord true": "did you mean 'tensorboard'?",
    "--data.normalize features": "did you mean 'feature'?",
    "--model mlp": "model is a section of settings, not a setting; did you mean model.name?",
    "--data t.csv": "did you mean data.path or data.source?",
    "--model.name resnet50": "did you mean 'cnn'?",
    "--model.name MLP": "did you mean 'mlp'?",
    "--model.name mlp --model.options.hiden [4]": "did you mean 'hidden'?",
    "--model.name mlp --model.options.activation rellu": "one of relu, tanh or sigmoid; did you mean 'relu'?",
    "--model.loss crossentropy": "did you mean 'cross_entropy'?",
    "--model.metrics acc": "did you mean 'accuracy'?",
    "--optim.name Adam": "did you mean 'adam'?",
    "--optim.name rmsprob": "did you mean 'rmsprop'?",
    "--comm.algorithm rng": "did you mean 'ring'?",
    "--data.augment shfit:1": "did you mean 'shift'?",
    "--data.source file": "did you mean 'files'?",
    "--data.source digit": "did you mean 'digits'?",
    "--data.path t.csv --data.format cvs": "did you mean 'csv'?",
    "--data.path t.csv --data.targets lable": "did you mean 'label'?",
    "--chaos 'kil_rank_1_at_step_3'": "did you mean 'kill'?",
    "--chaos kill_rank_1_at_point_step.sun": "did you mean step.sum",
    "--chaos random:kill=2": "did you mean 'kills'?",
}
OTHERS = {  # words of another command -> what the line must say
    "ddl.evaluate run --splt test": "did you mean --split?",
    "ddl.evaluate run --split tests": "--split is tests: choose train, validation or test; did you mean 'test'?",
    "ddl.predict run --inptu x.npy": "did you mean --input?",
    "ddl.audit run --jsn": "did you mean --json?",
    "ddl.launch --restart 3": "there is no option --restart; did you mean --restarts?",
    "ddl.launch --epochs 3": "did you mean train.epochs?",
    "ddl.bench recover": "did you mean 'recovery'?",
    "ddl.bench step --models mlpp": "did you mean 'mlp'?",
    "ddl.doctor --enable-fault-tolerence": "did you mean '--enable-fault-tolerance'?",
}


def refusal(capsys, module, words):
    """The one line that a command says, with status 2."""
    capsys.readouterr()
    try:
        status = importlib.import_module(module).main(words)
    except SystemExit as end:
        status = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    return line


@pytest.mark.parametrize("words", TRAIN)
def test_a_misspelled_setting_or_name_is_answered_with_the_right_one(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text("[trian]\nepochs = 3\n")
    (tmp_path / "t.csv").write_text("a,b,label\n" + "1,2,x\n3,4,y\n" * 20)
    given = [word.strip("'").replace("_", " ") if "_rank_" in word else word for word in words.split()]
    line = refusal(capsys, "ddl.train.__main__", [*given, "--fault.tolerance=off"])
    assert line.startswith("ddl.train: ") and TRAIN[words] in line
    assert "['" not in line and "typing." not in line  # words, no Python
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", OTHERS)
def test_so_is_a_misspelled_option_of_another_command(words, capsys):
    module, *given = words.split()
    line = refusal(capsys, "ddl.bench.__main__" if module == "ddl.bench" else module, given)
    assert line.startswith(f"{module}: ") and OTHERS[words] in line


def ddl(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["ddl", *words])
    monkeypatch.delitem(sys.modules, "ddl.doctor", raising=False)  # it runs as a program
    with pytest.raises(SystemExit) as end:
        runpy.run_module("ddl", run_name="__main__")
    return end.value.code, capsys.readouterr()


def test_a_misspelled_verb_too(capsys, monkeypatch):
    status, said = ddl(capsys, monkeypatch, "trian")
    assert (status, said.err) == (2, "ddl: there is no verb trian; did you mean 'train'?\n")
    status, said = ddl(capsys, monkeypatch, "serve")
    assert status == 2 and "there are audit, bench, compress, dashboard, doctor" in said.err


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version_is_told(capsys, monkeypatch, word):
    assert ddl(capsys, monkeypatch, word) == (0, (f"ddl {__version__}\n", ""))
    if word == "--version":
        with pytest.raises(SystemExit):
            importlib.import_module("ddl.train.__main__").main([word])
        assert capsys.readouterr().out == f"ddl {__version__}\n"


def test_help_is_a_verb(capsys, monkeypatch):
    status, said = ddl(capsys, monkeypatch, "help")
    assert status == 0 and said.out.startswith("usage: ddl VERB")
    status, said = ddl(capsys, monkeypatch, "help", "doctor")
    assert status == 0 and said.out.startswith("usage: python -m ddl.doctor")
