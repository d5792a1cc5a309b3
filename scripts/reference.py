#!/usr/bin/env python3
"""The second implementation: what ONNX Runtime computes, and how far two results lie apart.

    reference.py MODEL.onnx --inputs F.npz --output F.npz [--threads N]
    reference.py --compare REFERENCE.npz RESULT.npz [--tolerance T]

The first form writes the outputs keyed by name.  The second prints JSON: for each output of the reference its largest
absolute difference, that over the reference's largest magnitude ("relative"), and its number of elements; and "worst",
the largest relative difference of all.  A missing output, another shape, or a NaN or infinity on one side only is an
infinite difference.  Status 5 where the worst is above the tolerance (default: no limit).  Works in target/venv.
"""
import argparse
import json
import math
import os

import common


def run(model, inputs, output, threads):
    """Runs `model` once on the arrays of `inputs` and writes its outputs."""
    import numpy as np
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    results = session.run(names, dict(np.load(inputs)))
    part = output + ".part"
    with open(part, "wb") as f:
        np.savez(f, **dict(zip(names, results)))
    os.replace(part, output)


def difference(reference, result):
    """(largest absolute difference, that over the reference's largest magnitude); infinite where they cannot match."""
    import numpy as np
    if result is None or reference.shape != result.shape:
        return math.inf, math.inf
    if reference.size == 0:
        return 0.0, 0.0
    a, b = reference.astype(np.float64), result.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.all(same | (np.isfinite(a) & np.isfinite(b))):
        return math.inf, math.inf
    largest = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
    absolute = float(np.max(np.abs(a - b), initial=0.0, where=~same))
    if absolute == 0.0:
        return 0.0, 0.0
    return absolute, absolute / largest if largest else math.inf


def compare(reference, result):
    """The JSON report on two .npz files."""
    import numpy as np
    a, b = np.load(reference), dict(np.load(result))
    outputs = {}
    for name in a.files:
        absolute, relative = difference(a[name], b.get(name))
        outputs[name] = {"absolute": absolute, "relative": relative, "elements": int(a[name].size)}
    return {"outputs": outputs, "worst": max((o["relative"] for o in outputs.values()), default=0.0)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?")
    p.add_argument("--inputs")
    p.add_argument("--output")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--compare", nargs=2, metavar=("REFERENCE", "RESULT"))
    p.add_argument("--tolerance", type=float, default=math.inf)
    a = p.parse_args()
    if bool(a.model) == bool(a.compare) or (a.model and not (a.inputs and a.output)):
        p.error("give MODEL with --inputs and --output, or --compare")
    common.enter_venv()
    if a.compare:
        report = compare(*a.compare)
        print(json.dumps(report, indent=1))
        raise SystemExit(5 if report["worst"] > a.tolerance else 0)
    run(a.model, a.inputs, a.output, a.threads)


main()
