#!/usr/bin/env python3
"""Writes the ONNX backend test suite as files.

    suite.py OUT      OUT/{node,simple,pytorch-converted,pytorch-operator}/CASE/{model.onnx,test_data_set_N/*.pb}
                      OUT/light/*.onnx with *_output_0.pb, OUT/tolerances.json ({case: {rtol, atol}} of the node cases)

The node cases exist only as Python programs in the pinned `onnx` package, which computes their data from a fixed seed.
Each input and output is the protobuf message that the graph's type names: TensorProto, SequenceProto, OptionalProto or
MapProto.  A `light` case has no input files: it runs on arange(n)/n.  Works in target/venv, which it makes.  A folder
that is there was written whole and is kept.
"""
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import common

SHIPPED = ("simple", "pytorch-converted", "pytorch-operator", "light")


def message(value, ty):
    """`value` as the protobuf message that the graph's type asks for."""
    import numpy as np
    import onnx
    from onnx import numpy_helper
    if isinstance(value, onnx.TensorProto):
        return value
    if ty.HasField("sequence_type"):
        return numpy_helper.from_list(value, "")
    if ty.HasField("optional_type"):
        return numpy_helper.from_optional(value, "")
    if ty.HasField("map_type"):
        return numpy_helper.from_dict(value, "")
    return numpy_helper.from_array(np.asarray(value), "")


def write_node_cases(out):
    """Builds every node case under `out` and returns the tolerances by case."""
    import numpy as np
    warnings.simplefilter("ignore")  # Cases divide by zero and overflow casts on purpose.
    # The cases draw their data when they are collected, so the seed must come first.
    np.random.seed(0)
    from onnx.backend.test.loader import load_node_model_tests
    tolerances = {}
    for case in load_node_model_tests():
        folder = out / case.kind / case.name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(case.model.SerializeToString())
        tolerances[case.name] = {"rtol": case.rtol, "atol": case.atol}
        graph = case.model.graph
        for number, (inputs, outputs) in enumerate(case.data_sets):
            data = folder / f"test_data_set_{number}"
            data.mkdir()
            for kind, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
                for i, value in enumerate(values):
                    (data / f"{kind}_{i}.pb").write_bytes(message(value, infos[i].type).SerializeToString())
    return tolerances


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    out = Path(sys.argv[1]).absolute()
    if (out / "tolerances.json").exists():
        print(f"{out} is there")
        return
    if out.exists():
        common.fail(f"{out} exists and is no suite")
    common.enter_venv()
    import onnx
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tolerances = write_node_cases(part)
    shipped = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in SHIPPED:
        shutil.copytree(shipped / kind, part / kind)
    (part / "tolerances.json").write_text(json.dumps(tolerances, indent=0))
    os.replace(part, out)
    others = {kind: sum(1 for _ in (out / kind).rglob("*.onnx")) for kind in SHIPPED}
    print(f"{out}: node {len(tolerances)}, " + ", ".join(f"{k} {n}" for k, n in others.items()))


main()
