"""Data files written by hand, without ddl, to check the readers against."""

import gzip
import struct

import numpy as np

IDX_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array):
    head = bytes([0, 0, IDX_CODES[str(array.dtype)], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx(path, array):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(idx_bytes(array))
    return path


def write_cifar(path, images, *labels):
    """images: (n, 32, 32, 3) uint8; labels: one or two columns."""
    with open(path, "wb") as file:
        for row, image in enumerate(images):
            file.write(bytes(int(column[row]) for column in labels))
            for channel in range(3):
                file.write(image[:, :, channel].tobytes())
    return path


def write_csv(path, rows, header=None, delimiter=","):
    lines = ([] if header is None else [header]) + rows
    path.write_text("".join(delimiter.join(map(str, line)) + "\n" for line in lines))
    return path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def images(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)
