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
    ("losses", "scale"), [([3.0, 0.2], "log"), ([3.0, 2.0], "linear"), ([1.0, 0.0], "linear"), ([5.0, -1.0], "linear")]
)
def test_a_loss_over_decades_is_drawn_on_a_logarithmic_scale(losses, scale, figures, tmp_path):
    assert plots.curves(events(losses), tmp_path / "curves.png")
    loss, accuracy = figures[0].axes
    assert loss.get_yscale() == scale and accuracy.get_yscale() == "linear"
    assert accuracy.yaxis.get_major_formatter()(0.25, 0) == "25 %"


def test_the_last_report_of_a_step_counts(figures, tmp_path):
    plots.curves([*events([3.0, 9.0]), *events([3.0, 2.0])], tmp_path / "curves.png")
    assert list(figures[0].axes[0].lines[0].get_ydata()) == [3.0, 2.0]


def test_no_curve_is_drawn_without_data(tmp_path):
    assert plots.curves([{"event": "start"}], tmp_path / "curves.png") is None


def test_a_confusion_matrix_names_its_classes_and_counts_correct_predictions(figures, tmp_path):
    plots.confusion([[3, 1], [0, 2]], ["cat", "dog"], tmp_path / "confusion.png")
    (axis,) = figures[0].axes
    assert axis.get_title() == "5 of 6 right"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog"]
    assert sorted(text.get_text() for text in axis.texts) == ["1", "2", "3"]


def test_all_images_have_one_scale(figures, tmp_path):
    images = np.stack([np.zeros((2, 2)), np.full((2, 2), 4.0), np.full((2, 2), -1.0)])
    plots.grid(images, tmp_path / "grid.png", columns=2)
    plots.grid(images, tmp_path / "grid.png", columns=2, title="pairs", scale=(0.0, 4.0))
    shown = [{image.get_clim() for axis in figure.axes for image in axis.images} for figure in figures]
    assert shown == [{(-1.0, 4.0)}, {(0.0, 4.0)}]
    assert figures[1].get_suptitle() == "pairs"
