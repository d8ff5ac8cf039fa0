"""Plots are readable: shares in percent, a log axis for losses over decades, one scale for all images."""

from __future__ import annotations

import numpy as np
import pytest

from ddl.metrics import plots


@pytest.fixture
def figures(monkeypatch, tmp_path):
    """The figures that are saved, in their order; nothing is written."""
    pytest.importorskip("matplotlib")
    saved = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: saved.append(figure) or path)
    return saved


def events(losses, epochs=()):
    steps = [{"event": "step", "step": n, "loss": loss, "accuracy": 0.5} for n, loss in enumerate(losses, 1)]
    return [*steps, *({"event": "epoch", "step": n, "train": {"loss": loss}} for n, loss in epochs)]


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([3.0] * 99 + [0.01] * 99, "log"), ([3.0, 2.0], "linear"), ([1.0, 0.0], "linear"), ([5.0, -1.0], "linear")],
)
def test_a_loss_over_decades_is_drawn_on_a_logarithmic_scale(losses, scale, figures, tmp_path):
    assert plots.curves(events(losses), tmp_path / "curves.png")
    loss, accuracy = figures[0].axes
    assert loss.get_yscale() == scale and accuracy.get_yscale() == "linear"
    assert accuracy.yaxis.get_major_formatter()(0.25, 0) == "25 %"


def test_the_last_report_of_a_step_counts(figures, tmp_path):
    plots.curves([*events([3.0, 9.0]), *events([3.0, 2.0])], tmp_path / "curves.png")
    assert list(figures[0].axes[0].lines[0].get_ydata()) == [3.0, 2.0]


def test_a_spike_in_the_first_steps_does_not_flatten_the_rest(figures, tmp_path):
    losses = [-90.0, *(np.linspace(-1, -2, 400)), *np.linspace(-2, -3, 100)]
    plots.curves(events([-value for value in losses]), tmp_path / "curves.png")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 1 and 3 < high < 8


def test_a_plot_names_the_run_the_best_epoch_and_each_failure_with_its_recovery(figures, tmp_path):
    start = {"event": "start", "name": "digits", "model": "cnn", "ranks": 4, "step": 0}
    ends = [
        {
            "event": "epoch",
            "epoch": n,
            "step": 10 * n,
            "train": {},
            "validation": {"loss": loss, "accuracy": 0.5 + n / 10},
        }
        for n, loss in enumerate([2.0, 1.0, 1.5], 1)
    ]
    failure = {"event": "failure", "step": 12, "rank": 3}
    recovery = {"event": "recovery", "step": 12, "seconds": 0.0824}
    lines = [{**line, "lr": 0.1} for line in events(np.linspace(3, 1, 30))]
    for theme in ("light", "dark"):
        plots.curves([start, *lines, *ends, failure, recovery], tmp_path / "curves.png", theme)
    loss, accuracy, rate = figures[0].axes
    assert figures[0].get_suptitle() == "digits" and rate.get_ylabel() == "learning rate"
    assert "best epoch (2): 1" in [line.get_label() for line in loss.lines]
    assert "best epoch (2): 70.0 %" in [line.get_label() for line in accuracy.lines]
    assert [text.get_text() for text in loss.texts] == ["rank 3, 82 ms"] and not accuracy.texts
    assert figures[0].get_facecolor() == (1, 1, 1, 1) and sum(figures[1].get_facecolor()[:3]) < 0.5


def test_a_smoothed_curve_keeps_a_constant_and_does_not_lag():
    assert plots.smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    line = plots.smooth([float(n) for n in range(1000)])
    assert line[500] == pytest.approx(500)


def test_no_curve_is_drawn_without_data(tmp_path):
    assert plots.curves([{"event": "start"}], tmp_path / "curves.png") is None


def test_a_confusion_matrix_names_its_classes_and_counts_correct_predictions(figures, tmp_path):
    plots.confusion([[3, 1], [0, 2]], ["cat", "dog"], tmp_path / "confusion.png")
    (axis,) = figures[0].axes
    assert axis.get_title(loc="left") == "5 of 6 right, 83.33 %"
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true", "predicted")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog"]
    assert sorted(text.get_text() for text in axis.texts) == ["100 %\n2", "25 %\n1", "75 %\n3"]


def test_all_images_have_one_scale(figures, tmp_path):
    images = np.stack([np.zeros((2, 2)), np.full((2, 2), 4.0), np.full((2, 2), -1.0)])
    plots.grid(images, tmp_path / "grid.png", columns=2)
    plots.grid(images, tmp_path / "grid.png", columns=2, title="pairs", scale=(0.0, 4.0))
    shown = [{image.get_clim() for axis in figure.axes for image in axis.images} for figure in figures]
    assert shown == [{(-1.0, 4.0)}, {(0.0, 4.0)}]
    assert figures[1].get_suptitle() == "pairs"
