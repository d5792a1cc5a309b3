"""Writes a GGUF model again with its matrices in another form: for models of which only one form is to be had.

    requantize_gguf.py IN.gguf OUT.gguf {Q8_0,K}

Q8_0 is the package's own. K has Q4_K where rows are a multiple of 256 (every second such matrix in Q6_K, as llama.cpp's mixtures have
both), else Q5_0. The package reads K-quants but does not write them: scales are found here the plain way, by the extremes of a block, and what
was written is read back and compared.  Needs numpy and gguf.
"""
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize


def q4_k(x):
    """[.., 256 n] as Q4_K: eight runs of 32 with 6-bit scales and least values, of one scale each in f16 (144 bytes for 256)."""
    runs = x.reshape(-1, 8, 32)
    least = np.minimum(runs.min(-1), 0)
    steps = (runs.max(-1) - least) / 15
    d, dmin = steps.max(-1, keepdims=True) / 63, -least.min(-1, keepdims=True) / 63
    d, dmin = (v.astype(np.float16) for v in (d, dmin))
    whole = lambda v, by: np.clip(np.round(v / np.where(by == 0, 1, by).astype(np.float32)), 0, 63).astype(np.uint8)
    scale, low = whole(steps, d), whole(-least, dmin)
    by, minus = (d.astype(np.float32) * scale)[..., None], (dmin.astype(np.float32) * low)[..., None]
    numbers = np.clip(np.round((runs + minus) / np.where(by == 0, 1, by)), 0, 15).astype(np.uint8)
    packed = np.concatenate([scale[:, :4] | (scale[:, 4:] >> 4) << 6, low[:, :4] | (low[:, 4:] >> 4) << 6,
                             (scale[:, 4:] & 15) | (low[:, 4:] & 15) << 4], -1)
    pairs = numbers.reshape(-1, 4, 2, 32)
    halves = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), packed, halves], -1)


def q6_k(x):
    """[.., 256 n] as Q6_K: sixteen runs of 16 with 8-bit scales, of one scale in f16 (210 bytes for 256)."""
    runs = x.reshape(-1, 16, 16)
    steps = np.abs(runs).max(-1) / 31
    d = (steps.max(-1, keepdims=True) / 127).astype(np.float16)
    scale = np.clip(np.round(steps / np.where(d == 0, 1, d).astype(np.float32)), 0, 127).astype(np.int8)
    by = (d.astype(np.float32) * scale)[..., None]
    numbers = np.clip(np.round(runs / np.where(by == 0, 1, by)) + 32, 0, 63).astype(np.uint8)
    # Each half of 128 has four rows of 32: low bits of rows 0 and 2, 1 and 3 share a byte, high bits of all four do.
    rows = numbers.reshape(-1, 2, 4, 32)
    low = np.stack([rows[:, :, 0] & 15 | (rows[:, :, 2] & 15) << 4, rows[:, :, 1] & 15 | (rows[:, :, 3] & 15) << 4], 2)
    high = rows[:, :, 0] >> 4 | (rows[:, :, 1] >> 4) << 2 | (rows[:, :, 2] >> 4) << 4 | (rows[:, :, 3] >> 4) << 6
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), scale.view(np.uint8), d.view(np.uint8)], -1)


def main():
    source, to, form = sys.argv[1:]
    reader = GGUFReader(source)
    writer = GGUFWriter(to, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    wide = 0
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        x = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = Type.Q8_0 if form == "Q8_0" else Type.Q5_0
        if form == "K" and x.shape[-1] % 256 == 0:
            kind = Type.Q6_K if wide % 2 else Type.Q4_K
            wide += 1
        if kind in (Type.Q4_K, Type.Q6_K):
            data = (q4_k if kind == Type.Q4_K else q6_k)(x).reshape(x.shape[0], -1)
        else:
            data = quantize(x, kind)
        error = np.abs(dequantize(data, kind) - x).max() / np.abs(x).max()
        bits = {Type.Q8_0: 8, Type.Q6_K: 6, Type.Q5_0: 5, Type.Q4_K: 4}[kind]
        assert error < 2.0 / 2**bits, (tensor.name, kind, error)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
