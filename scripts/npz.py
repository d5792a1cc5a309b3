"""Reads and writes .npz files with the standard library alone.

A fresh machine needs no numpy for the quick start: an .npz is a zip of .npy files, and a .npy is a short text header
before the array's bytes.  Only plain little-endian arrays in C order are written; Fortran order is refused on reading.
"""
import ast
import math
import struct
import zipfile

MAGIC = b"\x93NUMPY"
# numpy's type string -> (struct code, bytes); f2 has a struct code too ("e").
TYPES = {"|b1": ("?", 1), "|i1": ("b", 1), "|u1": ("B", 1), "<i2": ("h", 2), "<u2": ("H", 2), "<i4": ("i", 4),
         "<u4": ("I", 4), "<i8": ("q", 8), "<u8": ("Q", 8), "<f2": ("e", 2), "<f4": ("f", 4), "<f8": ("d", 8)}


class Array:
    """One array: numpy type string, shape and the raw bytes in C order."""

    def __init__(self, descr, shape, data):
        self.descr, self.shape, self.data = descr, tuple(shape), data

    def values(self):
        """All elements as a flat tuple."""
        code, size = TYPES[self.descr]
        return struct.unpack(f"<{len(self.data) // size}{code}", self.data)

    def __eq__(self, other):
        """Bit for bit: a NaN equals itself, 0.0 and -0.0 differ."""
        return (self.descr, self.shape, self.data) == (other.descr, other.shape, other.data)


def array(descr, shape, values):
    """An `Array` from a flat sequence of numbers."""
    code, size = TYPES[descr]
    values = list(values)
    if len(values) != math.prod(shape):
        raise ValueError(f"{len(values)} values do not fill shape {list(shape)}")
    return Array(descr, shape, struct.pack(f"<{len(values)}{code}", *values))


def encode(a):
    """The .npy bytes of `a`; the data starts at a multiple of 64 bytes, as numpy writes it."""
    head = repr({"descr": a.descr, "fortran_order": False, "shape": a.shape}).encode()
    head += b" " * (-(len(MAGIC) + 4 + len(head) + 1) % 64) + b"\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(head)) + head + a.data


def decode(raw, name):
    """The `Array` in .npy bytes; `name` only serves the error messages."""
    if raw[:6] != MAGIC:
        raise ValueError(f"{name}: not a .npy file")
    wide = raw[6] > 1
    start = 12 if wide else 10
    length = struct.unpack("<I" if wide else "<H", raw[8:start])[0]
    head = ast.literal_eval(raw[start:start + length].decode("latin1"))
    if head["fortran_order"] and len(head["shape"]) > 1:
        raise ValueError(f"{name}: Fortran order is not supported")
    if head["descr"] not in TYPES:
        raise ValueError(f"{name}: element type {head['descr']} is not supported")
    data = raw[start + length:]
    wanted = math.prod(head["shape"]) * TYPES[head["descr"]][1]
    if len(data) != wanted:
        raise ValueError(f"{name}: {len(data)} bytes of data, {wanted} expected")
    return Array(head["descr"], head["shape"], data)


def save(path, arrays):
    """Writes {name: Array} to `path`; identical arrays give an identical file (no time stamps)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        for name, a in arrays.items():
            z.writestr(zipfile.ZipInfo(name + ".npy"), encode(a))


def load(path):
    """Reads {name: Array} from `path`, in the order of the file."""
    with zipfile.ZipFile(path) as z:
        return {n.removesuffix(".npy"): decode(z.read(n), f"{path}:{n}") for n in z.namelist()}
