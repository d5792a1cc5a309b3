#!/usr/bin/env python3
"""Writes tests/golden/values: one file for each kind of value that is no tensor, as the `onnx` package writes it.

    values.py [OUT]          default: tests/golden/values; needed again only when a kind is added

tests/tests/values.rs states what each holds.  Works in target/venv, which it makes.
"""
import sys
from pathlib import Path

import common


def messages():
    """{file name: message}."""
    import numpy as np
    from onnx import MapProto, OptionalProto, SequenceProto, TensorProto, numpy_helper
    a, b = np.array([1.5, -2.0], np.float32), np.array([[7]], np.float32)
    named = MapProto(name="map_of_strings", key_type=TensorProto.STRING, string_keys=[b"x", b"\xff"])
    named.values.CopyFrom(numpy_helper.from_list([a, b]))
    words = np.array([["a", "bc"]], object)
    return {
        "tensor": numpy_helper.from_array(a, "tensor"),
        "strings": numpy_helper.from_array(words, "strings"),
        "sequence": numpy_helper.from_list([a, b], "sequence"),
        "sequence_empty": numpy_helper.from_list([], "sequence_empty"),
        "sequence_of_sequences": numpy_helper.from_list([[a], [b, a]], "sequence_of_sequences"),
        "sequence_of_maps": numpy_helper.from_list([{1: 0.5, 2: 0.25}, {3: 1.0}], "sequence_of_maps"),
        "sequence_of_sequences_empty": numpy_helper.from_list([], "sequence_of_sequences_empty",
                                                              SequenceProto.SEQUENCE),
        "optional_tensor": numpy_helper.from_optional(a, "optional_tensor"),
        "optional_sequence": numpy_helper.from_optional([b], "optional_sequence"),
        "optional_nothing": numpy_helper.from_optional(None, "optional_nothing", OptionalProto.TENSOR),
        "map_of_ints": numpy_helper.from_dict({-5: a, 9: a}, "map_of_ints"),
        "map_of_strings": named,
    }


def main():
    if len(sys.argv) > 2 or sys.argv[1:2] and sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    out = Path(sys.argv[1] if sys.argv[1:] else common.ROOT / "tests/golden/values")
    common.enter_venv()
    out.mkdir(parents=True, exist_ok=True)
    for name, message in messages().items():
        (out / f"{name}.pb").write_bytes(message.SerializeToString())


main()
