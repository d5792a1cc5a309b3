"""Writes frontend/tests/fixtures/encodings.gguf with the Python package `gguf` (pip install gguf).

For each encoding NAME the file has a tensor NAME of random blocks and a tensor NAME.expected with what the package's own
dequantization makes of it, and some metadata of each kind. Run from the root of the repository; the file is committed, so
that the tests need no Python.
"""

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES

random = np.random.default_rng(6)
writer = GGUFWriter("frontend/tests/fixtures/encodings.gguf", "none")
writer.add_uint32("test.count", 7)
writer.add_float32("test.ratio", 0.5)
writer.add_bool("test.flag", True)
writer.add_array("test.words", ["Ġa", "b", "中文"])
writer.add_array("test.sizes", [1, -2, 3])
for kind in [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]:
    elements, size = GGML_QUANT_SIZES[kind]
    rows, blocks = 2, max(1, 64 // elements)
    if elements == 1:
        values = random.standard_normal((rows, blocks)).astype(np.float32)
        data = quants.quantize(values, kind)
    else:
        data = random.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
        # Random bits are no sane half-precision scales: those are put where each layout has them.
        places = {Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208], Q.Q4_1: [0, 2], Q.Q5_1: [0, 2]}.get(kind, [0])
        for place in places:
            scales = random.standard_normal((rows, blocks, 1)).astype(np.float16)
            data[:, :, place : place + 2] = scales.view(np.uint8)
        data = data.reshape(rows, blocks * size)
    expected = quants.dequantize(data, kind).astype(np.float32)
    if kind in (Q.F32, Q.F16):
        writer.add_tensor(kind.name, data)
    else:
        writer.add_tensor(kind.name, data.view(np.uint8), raw_dtype=kind)
    writer.add_tensor(kind.name + ".expected", expected)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
