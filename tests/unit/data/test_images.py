"""Images in folders and tar files come out as Pillow's pixels, with the classes that their places say."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest

from ddl.data import ImageSettings, Inputs, Known, open_dataset
from ddl.data.formats import image_source
from ddl.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image")


def pixels(height=6, width=8, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)[: 2 + (channels > 1)], np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if array is None else array).save(path, **options)
    return path


def opened(path, images=None, **kwargs):
    return open_dataset("files", path=str(path), images=images, **{"validation": 0.0, "test": 0.0, **kwargs})


def everything(source):
    source.hold([range(len(source))])
    return source.gather(np.arange(len(source)))


def two_classes(folder, count=4, size=(6, 8)):
    for place, name in enumerate(("cat", "dög")):
        for i in range(count):
            save(folder / name / f"{i}.png", pixels(*size, seed=10 * place + i))
    return folder


def test_a_folder_per_class_gives_pixels_and_names(tmp_path):
    two_classes(tmp_path)
    splits = opened(tmp_path)
    batch = everything(splits.train)
    assert list(splits.names) == ["cat", "dög"]
    assert batch["y"].tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(batch["x"][5], pixels(seed=11).astype("float32"))


def test_only_held_images_are_given_and_kept(tmp_path, monkeypatch):
    source = opened(two_classes(tmp_path)).train
    source.hold([range(2, 4)])
    with pytest.raises(IndexError, match="sample 1 is not held"):
        source.gather(np.array([1]))
    monkeypatch.setattr(image_source, "KEPT_BYTES", 6 * 8 * 3)  # room for one
    source.hold([range(0, 3)])
    first, again = source.gather(np.array([0, 1, 2])), source.gather(np.array([0, 1, 2]))
    assert np.array_equal(first["x"], again["x"])
    assert np.array_equal(first["x"][2], pixels(seed=2))


def test_images_that_fit_are_decoded_once_and_stay_when_shards_move(tmp_path):
    source = opened(two_classes(tmp_path)).train
    source.hold([range(0, 4)])
    first = source.gather(np.arange(4))["x"]
    for name in os.listdir(tmp_path / "cat"):
        (tmp_path / "cat" / name).write_bytes(b"")
    source.hold([range(2, 6)])
    assert np.array_equal(source.gather(np.array([3]))["x"][0], first[3])


@pytest.mark.parametrize("spelled", ["a.PNG", "a.bmp", "a.webp", "a.gif", "a.tiff"])
def test_lossless_formats_give_the_same_pixels(tmp_path, spelled):
    grey = np.repeat(pixels(channels=1)[..., None], 3, 2)
    image = Image.fromarray(grey if spelled != "a.gif" else grey[..., 0])
    image.save(tmp_path / spelled, **({"lossless": True} if spelled == "a.webp" else {}))
    x = everything(opened(tmp_path, ImageSettings(channels=3)).train)["x"][0]
    assert np.array_equal(x, grey)


def test_every_colour_mode_becomes_eight_bits(tmp_path):
    grey = pixels(channels=1)
    save(tmp_path / "a16.png", grey.astype(np.uint16) * 256 + 7)
    save(tmp_path / "b.png", np.dstack([grey, np.full_like(grey, 255)]))  # grey and alpha
    assert np.array_equal(everything(opened(tmp_path).train)["x"][..., 0], [grey, grey])
    clear = np.dstack([pixels(), np.zeros((6, 8), np.uint8)])
    save(tmp_path / "c.png", clear)
    x = everything(opened(tmp_path).train)["x"]
    assert x.shape == (3, 6, 8, 3)
    assert (x[2] == 255).all()  # what is transparent shows white
    assert np.array_equal(everything(opened(tmp_path, ImageSettings(channels=4)).train)["x"][2], clear)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    upright = pixels()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    save(tmp_path / "a.png", np.ascontiguousarray(np.rot90(upright)), exif=exif)
    assert np.array_equal(everything(opened(tmp_path).train)["x"][0], upright)


def test_resizing_crops_stretches_or_pads(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the middle half
    save(tmp_path / "a.png", wide)

    def x(resize):
        return everything(opened(tmp_path, ImageSettings(4, resize)).train)["x"][0, :, :, 0]

    assert (x("crop") == 200).all()
    assert 0 < x("stretch")[0, 0] < 200 and x("stretch").shape == (4, 4)
    assert (x("pad")[[0, 3]] == 0).all() and x("pad")[1:3].max() > 0
    assert opened(tmp_path, ImageSettings("2x6")).train.fields["x"].shape == (2, 6, 3)


def test_junk_hidden_files_empty_folders_and_links_in_a_circle_do_no_harm(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.txt").write_text("about")
    save(tmp_path / "cat" / "deep" / "er" / "x.png")
    (tmp_path / "cat" / "circle").symlink_to(tmp_path)
    source = opened(tmp_path).train
    assert len(source) == 9
    assert any("readme.txt" in note for note in source.notes) and any("empty" in note for note in source.notes)


def test_folders_of_parts_share_classes_and_form(tmp_path):
    for part in ("train", "val", "test"):
        two_classes(tmp_path / part)
    save(tmp_path / "test" / "dög" / "large.png", pixels(30, 50))
    for i in range(4):
        (tmp_path / "test" / "cat" / f"{i}.png").unlink()  # this part lacks a class
    splits = opened(tmp_path)
    assert everything(splits.test)["y"].tolist() == [1] * 5
    assert splits.validation.fields == splits.test.fields == splits.train.fields
    assert len(splits.validation) == 8


def test_a_class_that_training_lacks_is_named(tmp_path):
    for part in ("train", "test"):
        two_classes(tmp_path / part)
    save(tmp_path / "test" / "zebra" / "1.png")
    with pytest.raises(DataError, match="'zebra' is none of the classes of the training part, cat and dög"):
        opened(tmp_path)


def test_a_file_of_labels_gives_classes_or_values(tmp_path):
    for name in "abcd":
        save(tmp_path / f"{name}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("file;label\na.png;cat\nb;dog\nd.png;cat\n")
    splits = opened(tmp_path)
    assert list(splits.names) == ["cat", "dog"]
    assert everything(splits.train)["y"].tolist() == [0, 1, 0]
    labels.write_text("a.png,0.5\nb.png,2\n")
    assert everything(opened(tmp_path).train)["y"].tolist() == [[0.5], [2.0]]
    labels.write_text("file,label\na.png\nx.png,cat\na.png,dog\nx.png,dog\n")
    with pytest.raises(DataError, match=r"line 2 has no label and line 5 gives x.png another label than line 3"):
        opened(tmp_path)


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_damaged_images_are_all_named_at_once(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "cat" / "0.png").write_bytes(b"")
    (tmp_path / "cat" / "1.png").write_text("a text, no image")
    cut = tmp_path / "dög" / "0.png"
    cut.write_bytes(cut.read_bytes()[:-80])
    with pytest.raises(DataError, match=r"3 of 8 images.*0.png: the file is empty.*1.png: not an image.*dög/0.png"):
        opened(tmp_path)


def test_a_file_that_only_begins_as_an_image_is_not_said_to_be_something_else(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    with pytest.raises(DataError, match=r"0.png: cannot be decoded: it begins as an image"):
        opened(tmp_path)


def test_skipping_leaves_damaged_images_out_before_samples_are_numbered(tmp_path):
    two_classes(tmp_path, size=(30, 40))
    damage(tmp_path / "cat" / "1.png")  # its header and its end are whole
    (tmp_path / "dög" / "3.png").write_bytes(b"")
    source = opened(tmp_path, ImageSettings(damaged="skip")).train
    assert everything(source)["y"].tolist() == [0, 0, 0, 1, 1, 1]
    assert source.left_out.startswith("2 of 8 images")
    assert any("2 of 8 images are damaged and left out" in note for note in source.notes)
    with pytest.raises(DataError, match=r"cat/1.png: cannot be decoded"):
        everything(opened(tmp_path / "cat").train)


def write_tar(path, samples):
    """samples: (name, bytes) in order."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def png(seed):
    stream = io.BytesIO()
    Image.fromarray(pixels(seed=seed)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "ending, spell",
    [("cls", str), ("txt", lambda n: f"class{n}"), ("json", lambda n: json.dumps({"label": f"class{n}"}))],
)
def test_tar_files_of_webdataset(tmp_path, ending, spell):
    for shard in range(2):
        samples = [(shard * 3 + i, png(shard * 3 + i)) for i in range(3)]
        files = [
            (f"d/{n:04}.{end}", data)
            for n, image in samples
            for end, data in (("png", image), (ending, spell(n % 3).encode()))
        ]
        write_tar(tmp_path / f"s-{shard:02}.tar", files)
    for path in (tmp_path, tmp_path / "s-{00..01}.tar"):
        splits = opened(path)
        assert list(splits.names) == (["0", "1", "2"] if ending == "cls" else ["class0", "class1", "class2"])
        batch = everything(splits.train)
        assert batch["y"].tolist() == [0, 1, 2, 0, 1, 2]
        assert np.array_equal(batch["x"][4], pixels(seed=4))


def test_tar_files_that_cannot_be_used_are_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0"), ("2.png", png(2))])
    with pytest.raises(DataError, match=r"without a label.*a.tar: 2"):
        opened(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", [("1.png", png(1)), ("1.cls", b"0"), ("2.png", png(2)), ("2.cls", b"1")])
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:600])
    with pytest.raises(DataError, match=r"b.tar, byte 600: truncated within 1.png"):
        opened(tmp_path / "b.tar")


def test_new_images_are_read_in_the_form_of_the_training_part(tmp_path):
    splits = opened(two_classes(tmp_path / "train"), ImageSettings(4, "pad"))
    known = Known.from_json(json.loads(json.dumps(Known.of(splits.train, splits.names, splits.target).to_json())))
    one = save(tmp_path / "new" / "one.jpg", pixels(40, 20))
    save(tmp_path / "new" / "b" / "two.png", pixels(9, 9, channels=1))
    assert everything(Inputs().open(str(one), known))["x"].shape == (1, 4, 4, 3)
    folder = Inputs().open(str(tmp_path / "new"), known)
    assert everything(folder)["x"].shape == (2, 4, 4, 3) and list(folder.fields) == ["x"]
    labelled = Inputs(is_labelled=True).open(str(tmp_path / "train"), known)
    assert everything(labelled)["y"].tolist() == [0] * 4 + [1] * 4


def test_settings_of_images_are_refused_for_other_data(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 2)), y=np.arange(9) % 2)
    with pytest.raises(ConfigError, match="belong to images"):
        opened(tmp_path / "a.npz", ImageSettings(32))
