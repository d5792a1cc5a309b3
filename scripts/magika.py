#!/usr/bin/env python3
"""Turns a file into the input of the magika model, and the model's output into the name of a file type.

    magika.py prepare FILE INPUT.npz [--models DIR]      status 4 where the model is not asked (see below)
    magika.py answer FILE OUTPUT.npz [--models DIR]      one line: path, type, description, probability

The model reads 1,024 bytes from each end of the file as numbers 0 to 255, with 256 as padding, and gives a probability
for each of 214 types.  This does what magika 1.0.3 does around its model: white space is stripped from both ends, an
unsure answer becomes `txt` or `unknown`, and a file of fewer than 8 bytes is never shown to the model.  The numbers and
names come from the configuration that the package carries.  Standard library only.
"""
import argparse
import json
import sys
from pathlib import Path

import common
import npz

WHITE = b" \t\n\r\x0b\x0c"


class Config:
    """The package's own description of the model's input and output."""

    def __init__(self, folder):
        raw = json.loads((folder / "magika.config.json").read_text())
        self.beg, self.end, self.block = raw["beg_size"], raw["end_size"], raw["block_size"]
        self.pad, self.least = raw["padding_token"], raw["min_file_size_for_dl"]
        self.labels, self.renamed = raw["target_labels_space"], raw["overwrite_map"]
        self.thresholds, self.threshold = raw["thresholds"], raw["medium_confidence_threshold"]
        self.types = json.loads((folder / "magika.types.json").read_text())


def features(path, config):
    """The file's numbers as the model reads them, or None where it holds too few bytes that say anything."""
    with open(path, "rb") as f:
        size = f.seek(0, 2)
        f.seek(0)
        first = f.read(config.block)
        f.seek(max(0, size - config.block))
        last = f.read(config.block)
    beg = list(first.lstrip(WHITE)[:config.beg])
    end = list(last.rstrip(WHITE)[-config.end:])
    if len(beg) < config.least:
        return None
    # Short ends are padded away from the file's edge: the beginning behind, the end in front.
    return beg + [config.pad] * (config.beg - len(beg)) + [config.pad] * (config.end - len(end)) + end


def label(scores, config):
    """(type, probability): the likeliest type, or a generic one where the model is less sure than that type asks."""
    best = max(range(len(scores)), key=scores.__getitem__)
    guess = config.labels[best]
    name = config.renamed.get(guess, guess)
    if scores[best] < config.thresholds.get(guess, config.threshold):
        name = "txt" if config.types[name]["is_text"] else "unknown"
    return name, scores[best]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["prepare", "answer"])
    p.add_argument("file", type=Path)
    p.add_argument("npz", type=Path)
    p.add_argument("--models", type=Path, default=common.TARGET / "models")
    a = p.parse_args()
    if not a.file.is_file():
        common.fail(f"{a.file} is not a file")
    config = Config(a.models)
    if a.what == "prepare":
        numbers = features(a.file, config)
        if numbers is None:
            print(f"{a.file} has fewer than {config.least} bytes to look at; the model is not asked", file=sys.stderr)
            raise SystemExit(4)
        npz.save(a.npz, {"bytes": npz.array("<i4", (1, len(numbers)), numbers)})
        return
    scores = npz.load(a.npz)["target_label"].values()
    if len(scores) != len(config.labels):
        common.fail(f"{a.npz} holds {len(scores)} probabilities, {len(config.labels)} expected")
    name, probability = label(scores, config)
    print(f"{a.file}: {name} ({config.types[name]['description']}), probability {probability:.4f}")


main()
