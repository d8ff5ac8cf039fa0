"""Each augmentation transforms whole images as documented, and its random draws depend only on the shard."""

import numpy as np
import pytest

from ddl.arrays import generator
from ddl.data import (
    Blank,
    Crop,
    Field,
    Flip,
    Mixup,
    Noise,
    Shift,
    class_weights,
    make_transforms,
    multiplicity,
    oversample,
)
from ddl.errors import ConfigError, DataError

SEGMENTS = [slice(0, 3), slice(3, 3), slice(3, 8)]


def draws(seed=0):
    return [generator(seed, "test", shard) for shard in range(3)]


def batch(*shape, dtype=np.float32):
    x = np.random.default_rng(1).random((8, *shape)).astype(dtype) + 1
    return {"x": x, "y": np.arange(8) % 3}


def each(transform, given):
    return transform({name: value.copy() for name, value in given.items()}, SEGMENTS, draws())


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 2)])
def test_shift_moves_and_fills_with_zeros(shape):
    given = batch(*shape)
    out = each(Shift(2), given)["x"]
    for before, after in zip(given["x"], out, strict=True):
        places = [
            (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if np.array_equal(moved(before, dy, dx), after)
        ]
        assert len(places) == 1
    assert out.shape == given["x"].shape


def moved(image, dy, dx):
    """By index arithmetic, pixel by pixel."""
    out = np.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            if 0 <= i + dy < image.shape[0] and 0 <= j + dx < image.shape[1]:
                out[i, j] = image[i + dy, j + dx]
    return out


def test_flip_mirrors_some_and_keeps_others():
    given = batch(5, 4, 2)
    out = each(Flip(), given)["x"]
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(given["x"], out, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(given["x"], out, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 0 < sum(mirrored) < 8
    assert np.array_equal(each(Flip(1.0), given)["x"], given["x"][:, :, ::-1])


@pytest.mark.parametrize(("size", "shape"), [(None, (5, 4, 1)), ((3, 2), (3, 2, 1))])
def test_crop_is_a_window_of_the_padded_image(size, shape):
    given = batch(5, 4, 1)
    out = each(Crop(1, size), given)["x"]
    assert out.shape == (8, *shape)
    padded = np.pad(given["x"], [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape[:2], axis=(1, 2))
    for row, after in enumerate(out):
        assert (np.moveaxis(windows[row], 2, -1) == after).all(axis=(2, 3, 4)).any()


def test_noise_has_its_deviation():
    given = {"x": np.zeros((8, 4000), np.float32)}
    out = each(Noise(0.5), given)["x"]
    assert out.dtype == np.float32
    assert np.allclose(out.std(axis=1), 0.5, atol=0.03)


def test_mixup_blends_pairs_within_a_shard_with_their_targets():
    given = {"x": np.eye(8, dtype=np.float64), "y": np.arange(8)}
    mixup = Mixup(1.0).for_fields({"y": Field((), np.dtype(int), 8)})
    out = each(mixup, given)
    assert np.allclose(out["x"], out["y"])  # the image of a class is its one-hot vector
    assert np.allclose(out["y"].sum(axis=1), 1)
    assert not out["x"][:3, 3:].any() and not out["x"][3:, :3].any()
    assert ((out["y"] > 0).sum(axis=1) <= 2).all()
    values = each(Mixup(1.0), {"x": np.eye(8), "y": np.eye(8)})
    assert np.allclose(values["x"], values["y"])


def test_mixup_of_classes_0_and_1_as_values_and_of_data_without_targets():
    given = {"x": np.eye(8), "y": np.array([0, 1, 1, 0, 1, 0, 0, 1])}
    out = each(Mixup(1.0, as_values=True), given)
    # A row of x says from which two samples it comes, and how much of each.
    np.testing.assert_allclose(out["y"], out["x"] @ [0, 1, 1, 0, 1, 0, 0, 1])
    assert set(each(Mixup(1.0), {"x": np.eye(8)})) == {"x"}


def test_mixup_refuses_categories_that_it_could_not_blend_with_the_rest():
    fields = {"x": Field((2,), np.dtype("f4")), "categories": Field((1,), np.dtype("i8"), 40)}
    with pytest.raises(ConfigError, match="max_categories"):
        make_transforms(["mixup"], fields)


@pytest.mark.parametrize("transform", [Shift(1), Flip(), Crop(1), Noise(), Mixup(0.4, 3)])
def test_a_shards_draws_do_not_depend_on_its_company(transform):
    given = batch(5, 4, 1)
    together = each(transform, given)
    alone = transform({name: value[3:].copy() for name, value in given.items()}, [slice(0, 5)], draws()[2:])
    for name in together:
        assert np.array_equal(together[name][3:], alone[name])


@pytest.mark.parametrize("transform", [Shift(1), Flip(), Crop(1, (3, 3)), Noise(), Mixup(0.4, 3)])
def test_an_empty_batch_stays_empty(transform):
    empty = {name: value[:0] for name, value in batch(5, 4, 1).items()}
    assert len(transform(empty, [slice(0, 0)], draws())["x"]) == 0


@pytest.mark.parametrize(
    ("transform", "given", "words"),
    [
        (Shift(1), batch(5), "images"),
        (Crop(0, (9, 9)), batch(5, 4), "9x9 from images of 5x4"),
        (Noise(), batch(5, 4, dtype=np.int64), "floating"),
        (Mixup(), batch(5, 4), "number of classes"),
    ],
)
def test_data_that_cannot_be_augmented_is_reported(transform, given, words):
    with pytest.raises(DataError, match=words):
        each(transform, given)


def test_a_jobs_list_becomes_transforms():
    made = make_transforms(
        ["flip", "shift:2", {"name": "crop", "padding": 1}, "noise:0.5", "mixup", "ddl.data:Flip"],
        {"y": Field((), np.dtype(int), 4)},
    )
    assert made == [Flip(), Shift(2), Crop(1), Noise(0.5), Mixup(classes=4), Flip()]


def test_class_weights_make_classes_count_equally():
    labels = np.array([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels)
    assert weights[2] == 0
    assert np.allclose(weights[[0, 1, 3]] * [6, 3, 1], 10 / 3)
    assert weights[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize(("strength", "want"), [(0.0, [50, 13, 4]), (1.0, [50, 50, 50]), (0.5, [50, 32, 27])])
def test_oversampling_repeats_a_known_number_of_times(strength, want):
    labels = np.repeat([0, 1, 2], [50, 13, 4])
    indices = oversample(labels, seed=1, strength=strength)
    assert np.bincount(labels[indices]).tolist() == want
    times = multiplicity(indices, len(labels))
    assert times.sum() == len(indices)
    for label in range(3):
        of_class = times[labels == label]
        assert of_class.min() >= 1
        assert of_class.max() - of_class.min() <= 1
    assert np.array_equal(indices, oversample(labels, seed=1, strength=strength))
    assert (np.diff(indices) >= 0).all()


def test_blank_hides_that_share_of_tokens_but_no_padding():
    x = np.concatenate([np.full((8, 500), 7), np.zeros((8, 100), np.int64)], axis=1)
    out = each(Blank(0.3), {"x": x.copy()})["x"]
    assert set(np.unique(out)) == {0, 1, 7} and (out[:, 500:] == 0).all()
    assert (out == 1).sum() / 4000 == pytest.approx(0.3, abs=0.05)
    with pytest.raises(DataError, match="whole-number tokens"):
        each(Blank(), {"x": np.zeros((8, 3), np.float32)})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("shift:-1", "pixels"),
        ("flip:2", "probability"),
        ("noise:-1", "scale"),
        ("mixup:0", "alpha"),
        ("crop:-1", "padding"),
    ],
)
def test_invalid_numbers_are_reported_before_the_first_step(spec, says):
    with pytest.raises(ConfigError, match=says):
        make_transforms([spec], {})
