"""WebDataset: tar files in which the files of one sample follow each other and share a name up to its first dot.

Only the directory of each tar and its small label files are read on opening; image_source.py reads the images."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddl.data.formats.image_files import SUFFIXES
from ddl.data.formats.image_source import SHOWN, Images, Labels, Members
from ddl.data.formats.pixels import ImageSettings
from ddl.errors import DataError
from ddl.wording import counted, listed

LABEL_ENDINGS = ("cls", "txt", "json")
JSON_KEYS = ("label", "cls", "class", "class_name", "category", "target")
MOST_LABEL_BYTES = 1 << 20


@dataclass
class _Sample:
    """One sample: its image as (offset, bytes, name), and its label files by ending."""

    image: tuple[int, int, str] | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


def open_tars(paths: Sequence[Path], settings: ImageSettings, targets: str = "", is_labelled: bool = True) -> Images:
    """The images of tar files, with their labels.

    targets: the ending of the files of labels (cls, txt, json), or a key of the JSON ones.
    Raises DataError naming the first samples that have no label, where others have one."""
    places, names, labels, notes = [], [], [], list[str]()
    unlabelled, without_image = [], 0
    for number, path in enumerate(paths):
        for key, sample in _samples(path).items():
            if sample.image is None:
                without_image += 1
                continue
            offset, length, name = sample.image
            label = _label(sample, targets, path, key) if is_labelled else None
            if label is None:
                unlabelled.append(f"{path}: {key}")
            else:
                labels.append(label)
            places.append((number, offset, length))
            names.append(name)
    if not names:
        raise DataError(f"no images in {counted(len(paths), 'tar file')} ({listed(SUFFIXES[:4])})", paths[0])
    if unlabelled and (labels or targets):
        more = f" and {len(unlabelled) - SHOWN} more" if len(unlabelled) > SHOWN else ""
        wanted = targets or listed(f".{ending}" for ending in LABEL_ENDINGS)
        raise DataError(f"samples without a label ({wanted}): {', '.join(unlabelled[:SHOWN])}{more}")
    if without_image:
        notes.append(f"not used: {counted(without_image, 'sample')} of the tar files without an image")
    members = Members(paths, np.array(places, np.int64), names)
    return Images(members, Labels.of_texts(labels) if labels else None, settings, notes)


def _samples(path: Path) -> dict[str, _Sample]:
    """The samples of a tar file by their key, in order."""
    samples: dict[str, _Sample] = {}
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if not member.isfile() or not stem:  # hidden files have no stem
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"truncated within {member.name}", path, size)
                sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
                if f".{ending}".lower().endswith(SUFFIXES):
                    _add_image(sample, member, path)
                elif (last := ending.lower().rpartition(".")[2]) in LABEL_ENDINGS and member.size <= MOST_LABEL_BYTES:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    sample.texts[last] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"not a whole uncompressed tar file: {error}", path) from error
    return samples


def _add_image(sample: _Sample, member: tarfile.TarInfo, path: Path) -> None:
    """Keep the image; of several in one sample, the one with a single ending, such as 7.jpg beside 7.mask.png."""
    own = member.offset_data, member.size, member.name
    if sample.image is not None:
        plain = [one for one in (sample.image, own) if os.path.basename(one[2]).count(".") == 1]
        if len(plain) != 1:
            raise DataError(f"two images of one sample, {sample.image[2]} and {member.name}", path)
        own = plain[0]
    sample.image = own


def _label(sample: _Sample, targets: str, path: Path, key: str) -> str | None:
    """The label as text; None if there is none."""
    key_of_json = targets if targets and targets not in LABEL_ENDINGS else ""
    endings = [targets] if targets in LABEL_ENDINGS else ["json"] if key_of_json else LABEL_ENDINGS
    ending = next((one for one in endings if one in sample.texts), None)
    if ending is None:
        return None
    try:
        text = sample.texts[ending].decode("utf-8-sig").strip()
        if ending != "json":
            return text or None
        found = _of_json(json.loads(text), key_of_json)
    except ValueError as error:
        raise DataError(f"the {ending} file of {key} cannot be read: {error}", path) from error
    return None if found is None else str(found).strip() or None


def _of_json(value: Any, key: str) -> str | int | None:
    if isinstance(value, dict):
        value = next((value[name] for name in ([key] if key else JSON_KEYS) if name in value), None)
    return value if isinstance(value, str | int) else None
