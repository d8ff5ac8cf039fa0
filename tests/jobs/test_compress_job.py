"""ddl compress: a quantised graph answers nearly as the network of float32; a narrower network can be fine-tuned."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddl.data import digits


def test_int8_keeps_the_accuracy_and_its_weights_are_whole_numbers(train, door):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run = train("mlp", 1, "--train.epochs=6").folder
    ended = door(["-m", "ddl.compress", run, "--quantize", "int8", "--output", "small.onnx"])
    assert ended.status == 0 and "ONNX int8" in ended.out, ended.said
    file = ended.folder / "small.onnx"
    before, after = json.loads((ended.folder / "small.json").read_text())["forms"]
    assert after["metrics"]["accuracy"] >= before["metrics"]["accuracy"] - 0.01
    assert after["bytes"] == file.stat().st_size < 0.3 * before["bytes"]
    constants = [onnx.numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer]
    matrices = [one for one in constants if one.ndim == 2]
    assert len(matrices) == 3 and all(one.dtype == np.int8 for one in matrices)
    samples = digits().arrays
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shares = session.run(["probabilities"], {"x": samples["x"].astype(np.float32)})[0]
    right = (shares.argmax(axis=1) == samples["y"]).mean()
    assert right >= before["metrics"]["accuracy"] - 0.02


def test_a_network_with_half_its_channels_is_fine_tuned_by_its_own_job(train, door):
    whole = train("cnn", 1, "--train.epochs=5")
    small, tuned = whole.folder.parent / "small", whole.folder.parent / "tuned"
    ended = door(["-m", "ddl.compress", whole.folder, "--channels", "0.5", "--output", small])
    assert ended.status == 0, ended.said
    before, after = json.loads((small / "compress.json").read_text())["forms"]
    assert after["bytes"] < 0.3 * before["bytes"]
    words = [small / "config.toml", f"--run.dir={tuned}", "--metrics.console_every_s=0"]
    assert door(["-m", "ddl.train", *words]).status == 0
    found = json.loads((tuned / "summary.json").read_text())
    assert found["steps"] == whole.summary["steps"]  # a new run: the old one was not continued
    assert found["test"]["accuracy"] >= whole.summary["test"]["accuracy"] - 0.03
