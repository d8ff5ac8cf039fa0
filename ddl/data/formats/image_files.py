"""Find the images of a folder and their classes: a folder per class, a file of labels, and a folder per part.

image_source.py makes a source of them; image_labels.py reads files of labels."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddl.data.formats.image_labels import LABEL_FILES, FileLabels
from ddl.data.formats.image_source import SHOWN, Images, Labels, LooseFiles
from ddl.data.formats.pixels import ImageSettings
from ddl.data.source import Source
from ddl.errors import DataError
from ddl.wording import counted, listed

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
JUNK = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # left by file managers
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass
class Tree:
    """The files below a folder, with "/" between folders, sorted. folders: those directly in it."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def without_images(self) -> list[str]:
        full = {name.split("/")[0] for name in self.images}
        return [folder for folder in self.folders if folder not in full]


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def walk(folder: Path) -> Tree:
    """Every file below ``folder`` but hidden ones; links are followed, but none in a circle. Raises DataError."""
    tree = Tree()
    _walk(folder, "", tree, {os.path.realpath(folder)})
    for names in (tree.images, tree.others, tree.folders):
        names.sort()
    return tree


def _walk(folder: Path, prefix: str, tree: Tree, above: set[str]) -> None:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", folder) from error
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name.lower() in JUNK:
            continue
        if entry.is_dir():
            real = os.path.realpath(entry.path) if entry.is_symlink() or len(above) > 1 else entry.path
            if real in above:
                continue  # a link to a folder that contains it
            if not prefix:
                tree.folders.append(name)
            _walk(Path(entry.path), f"{name}/", tree, {*above, real})
        else:
            # A link to nothing is a damaged image; a pipe is none, and opening it would wait.
            is_readable = entry.is_file() or not os.path.exists(entry.path)
            (tree.images if is_readable and is_image_name(entry.name) else tree.others).append(name)


Parts = dict[str, Source]


def open_images(folder: Path, tree: Tree, settings: ImageSettings, targets: str = "", kind: str = "auto") -> Parts:
    """The parts of a folder of images, or "train" alone. targets: a file of labels. kind: Request.target_kind.

    Raises DataError naming everything that is wrong about classes or labels at once."""
    notes: list[str] = []
    folder, tree = _unwrapped(folder, tree, notes)
    labels = _label_file(folder, tree, targets, kind)
    by_part = _parts(folder, tree, notes)
    opened: Parts = {}
    for part in sorted(by_part, key=lambda name: name != "train"):
        directory, names = by_part[part]
        prefix = f"{directory}/" if directory else ""
        own = LooseFiles(folder / directory, [name.removeprefix(prefix) for name in names])
        is_labelled = part == "train" or bool(opened["train"].fields.keys() & {"y"})
        found, of_own = _labelled(own, labels, prefix, notes)
        if is_labelled and part != "train" and of_own is None:
            notes.append(f"not used: the {counted(len(own), 'image')} of {own.folder}, which have no labels")
            continue
        opened[part] = Images(found, of_own if is_labelled else None, settings, notes if part == "train" else ())
    others = [name for name in tree.others if name not in LABEL_FILES and folder / name != (labels and labels.path)]
    if others:
        notes.append(
            f"not read: {', '.join(others[:SHOWN])}" + f" and {len(others) - SHOWN} more" * (len(others) > SHOWN)
        )
    if empty := tree.without_images():
        notes.append(f"no images in the folder {listed(empty[:SHOWN], 'and')} of {folder}")
    opened["train"].notes = (*dict.fromkeys([*opened["train"].notes, *notes]),)
    return opened


def _unwrapped(folder: Path, tree: Tree, notes: list[str]) -> tuple[Path, Tree]:
    """The only folder inside ``folder``, where that one holds the folders of the classes or parts."""
    inner = {name.split("/")[0] for name in tree.images}
    deep = {tuple(name.split("/")[:2]) for name in tree.images if name.count("/") > 1}
    if len(inner) != 1 or len(deep) < 2 or any(name.count("/") < 2 for name in tree.images):
        return folder, tree
    (only,) = inner
    notes.append(f"classes are the folders of {folder / only}")
    return _unwrapped(folder / only, walk(folder / only), notes)


def _label_file(folder: Path, tree: Tree, targets: str, kind: str) -> FileLabels | None:
    if targets:
        path = Path(targets).expanduser()
        path = path if path.exists() else folder / targets
        if not path.is_file():
            raise DataError("data.targets of images is a file of labels, and there is no such file", targets)
        return FileLabels.read(path, kind)
    found = next((name for name in LABEL_FILES if name in tree.others), None)
    return FileLabels.read(folder / found, kind) if found else None


def _parts(folder: Path, tree: Tree, notes: list[str]) -> dict[str, tuple[str, list[str]]]:
    """part -> (its folder, its images); one part "train" in the folder itself if folders do not name parts."""
    tops = sorted({name.split("/")[0] for name in tree.images if "/" in name})
    roles = {top: PART_NAMES[top.lower()] for top in tops if top.lower() in PART_NAMES}
    others = [top for top in tops if top not in roles]
    trains = [top for top, role in roles.items() if role == "train"]
    are_deep = all(name.count("/") > 1 for name in tree.images if name.split("/")[0] in trains)
    if not roles or (others and not (trains and len(roles) > 1 and are_deep)):
        return {"train": ("", tree.images)}
    if not trains:
        raise DataError(f"there are folders {listed(roles, 'and')}, but none called train", folder)
    if len(set(roles.values())) < len(roles):
        raise DataError(f"several of the folders {listed(roles, 'and')} are the same part", folder)
    if others:
        notes.append(f"not read: {listed((str(folder / top) for top in others[:SHOWN]), 'and')}, beside train")
    parts = {role: (top, [name for name in tree.images if name.startswith(f"{top}/")]) for top, role in roles.items()}
    loose = [name for name in tree.images if "/" not in name]
    if loose:
        notes.append(f"not read: {counted(len(loose), 'image')} beside the folders of {folder}, such as {loose[0]}")
    return parts


def _labelled(
    files: LooseFiles, labels: FileLabels | None, prefix: str, notes: list[str]
) -> tuple[LooseFiles, Labels | None]:
    """The images that have labels, and these; all and None if there are no labels."""
    if labels is not None:
        numbers, own = labels.of(files.names, prefix)
        if len(numbers) < len(files):
            rest = counted(len(files) - len(numbers), "image")
            notes.append(f"not used: {rest} of {files.folder}, which {labels.path.name} does not name")
        return (files.pick(numbers), own) if len(numbers) else (files, None)
    inside = [name for name in files.names if "/" in name]
    if not inside:
        return files, None
    if len(inside) < len(files):
        outside = next(name for name in files.names if "/" not in name)
        rest = counted(len(files) - len(inside), "image")
        notes.append(f"not used: {rest} outside the folders of the classes, such as {files.folder / outside}")
    folders = [os.path.dirname(name).split("/")[0] for name in inside]
    return LooseFiles(files.folder, inside), Labels.of_texts([_class_name(one, files.folder) for one in folders])


def _class_name(folder: str, above: Path) -> str:
    """A class by its folder, spelled alike whether or not the system composes accents."""
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the name of a folder, {os.fsencode(folder)!r}, is not UTF-8", above) from error
    return unicodedata.normalize("NFC", folder)


def loose(paths: Sequence[Path]) -> LooseFiles:
    """Files by their paths, which are never resolved: a link is known by its own name."""
    folder = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    return LooseFiles(folder, [path.absolute().relative_to(folder).as_posix() for path in paths])


def open_list(paths: Sequence[Path], settings: ImageSettings, targets: str = "", kind: str = "auto") -> Source:
    """Images by their paths, as a pattern gives them: the class is the folder, if they lie in several."""
    files, notes = loose(paths), list[str]()
    labels = _label_file(files.folder, Tree(), targets, kind) if targets else None
    found, own = _labelled(files, labels, "", notes)
    return Images(found, own, settings, notes)
