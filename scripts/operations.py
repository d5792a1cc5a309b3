"""Models of one operation each, as layers of common networks have them. Wants numpy and onnx."""
import numpy as np
import onnx
from onnx import TensorProto as T, helper, numpy_helper

CONVOLUTIONS = [
    # channels, results, window, stride, border, groups, extents, dilation
    (3, 64, 7, 2, 3, 1, (224, 224), 1), (64, 64, 3, 1, 1, 1, (56, 56), 1), (128, 128, 3, 2, 1, 1, (56, 56), 1),
    (512, 512, 3, 1, 1, 1, (7, 7), 1), (32, 32, 3, 1, 1, 32, (112, 112), 1), (96, 96, 5, 2, 2, 96, (56, 56), 1),
    (576, 576, 7, 1, 3, 576, (14, 14), 1), (64, 128, 1, 1, 0, 1, (80, 80), 1), (256, 255, 1, 1, 0, 1, (20, 20), 1),
    (3, 32, 3, 2, 1, 1, (640, 640), 1), (32, 64, 3, 2, 1, 1, (320, 320), 1), (128, 128, 3, 1, 1, 4, (28, 28), 1),
    (256, 256, 3, 1, 1, 32, (28, 28), 1), (3, 16, 3, 1, 1, 1, (32, 32), 1), (16, 3, 9, 1, 4, 1, (128, 128), 1),
    (1, 32, 3, 1, 1, 1, (28, 28), 1), (96, 96, 7, 1, 3, 96, (56, 56), 1), (3, 96, 4, 4, 0, 1, (224, 224), 1),
    (64, 64, 3, 1, 2, 1, (65, 65), 2), (80, 384, 3, 1, 1, 1, (3000,), 1), (384, 384, 3, 2, 1, 1, (3000,), 1),
    (1, 512, 10, 5, 0, 1, (16000,), 1), (512, 512, 3, 2, 0, 1, (3199,), 1), (256, 256, 31, 1, 15, 256, (400,), 1),
    (64, 64, 7, 1, 3, 1, (1000,), 1), (16, 32, 3, 1, 1, 1, (16, 56, 56), 1),
]
TRANSPOSED = [
    # channels, results, window, stride, border, extents
    (64, 32, 2, 2, 0, (112, 112)), (128, 64, 4, 2, 1, (32, 32)), (512, 256, 3, 2, 1, (16, 16)), (100, 512, 4, 1, 0, (1, 1)),
    (512, 256, 16, 8, 4, (128,)),
]
PRODUCTS = [
    (1, 768, 3072), (8, 768, 768), (32, 1024, 1024), (128, 768, 3072), (512, 512, 512), (1, 4096, 4096), (16, 4096, 1000),
    (1000, 64, 64), (4096, 32, 32), (64, 2048, 10), (7, 300, 129), (196, 768, 2), (196, 768, 3), (196, 768, 15),
    (196, 768, 31), (196, 768, 255),
]
BATCHES = [(12, 128, 64, 128), (96, 197, 64, 197), (8, 1, 128, 512), (64, 16, 16, 16)]
PLANES = [1, 64, 112, 112]
FUNCTIONS = "Relu Sigmoid Tanh Erf Exp Log Sqrt HardSwish Softplus Elu Sin Abs Floor Neg".split()
# Name, op, operands' shapes, attributes.
PLAIN = [
    ("gelu", "Gelu", [[512, 3072]], {}), ("gemm turned", "Gemm", [[512, 128], [256, 512]], {"transA": 1, "transB": 1}),
    ("softmax of rows", "Softmax", [[12, 512, 512]], {"axis": -1}), ("softmax of 1000", "Softmax", [[64, 1000]], {"axis": -1}),
    ("softmax of planes", "Softmax", [[1, 21, 256, 256]], {"axis": 1}), ("log softmax", "LogSoftmax", [[8, 50257]], {"axis": -1}),
    ("add alike", "Add", [PLANES, PLANES], {}), ("add a row", "Add", [[512, 3072], [3072]], {}),
    ("outer product", "Mul", [[1024, 1], [1, 1024]], {}), ("global average", "GlobalAveragePool", [[1, 2048, 7, 7]], {}),
    ("pool 3 by 2", "MaxPool", [PLANES], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    ("pool 2 by 2", "MaxPool", [[1, 128, 64, 64]], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("pool 5", "MaxPool", [[1, 256, 20, 20]], {"kernel_shape": [5, 5], "pads": [2] * 4}),
    ("pool 13", "MaxPool", [[1, 256, 20, 20]], {"kernel_shape": [13, 13], "pads": [6] * 4}),
    ("average 3", "AveragePool", [[1, 192, 35, 35]], {"kernel_shape": [3, 3], "pads": [1] * 4}),
    ("pool of lines", "MaxPool", [[1, 64, 16000]], {"kernel_shape": [4], "strides": [4]}),
    ("argmax of rows", "ArgMax", [[64, 50257]], {"axis": -1}), ("argmax of planes", "ArgMax", [[1, 21, 256, 256]], {"axis": 1}),
    ("heads", "Transpose", [[1, 512, 12, 64]], {"perm": [0, 2, 1, 3]}),
    ("channels last", "Transpose", [PLANES], {"perm": [0, 2, 3, 1]}),
    ("channels first", "Transpose", [[1, 112, 112, 64]], {"perm": [0, 3, 1, 2]}),
    ("transpose", "Transpose", [[1024, 1024]], {"perm": [1, 0]}),
    ("concat channels", "Concat", [[1, 64, 56, 56]] * 2, {"axis": 1}), ("concat rows", "Concat", [[1, 3136, 64]] * 2, {"axis": 2}),
    ("to depth", "SpaceToDepth", [[1, 3, 640, 640]], {"blocksize": 2}), ("to space", "DepthToSpace", [PLANES], {"blocksize": 2}),
    ("to i64", "Cast", [PLANES], {"to": T.INT64}), ("upper triangle", "Trilu", [[1024, 1024]], {}),
    ("scores", "Einsum", [[1, 12, 128, 64]] * 2, {"equation": "bhid,bhjd->bhij"}), ("lrn", "LRN", [[1, 96, 55, 55]], {"size": 5}),
    ("positions", "NonZero", [[256, 1024]], {}),
]
RECURRENT = [(50, 1, 256, 256, "forward"), (20, 8, 128, 128, "bidirectional"), (100, 1, 40, 64, "forward")]


def models():
    """(name, model) of each."""
    random = np.random.default_rng(0)
    weight = lambda *s: (random.standard_normal(s) / max(1, np.sqrt(np.prod(s[1:])))).astype(np.float32)

    def model(name, op, shapes, weights=(), results=1, types=None, **attributes):
        """Operands first, then weights; a weight that is None is left out."""
        types = types or [T.FLOAT] * len(shapes)
        inputs = [helper.make_tensor_value_info(f"x{n}", t, s) for n, (s, t) in enumerate(zip(shapes, types))]
        known = [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights) if w is not None]
        operands = [i.name for i in inputs] + ["" if w is None else f"w{n}" for n, w in enumerate(weights)]
        outputs = [f"y{n}" for n in range(results)]
        node = helper.make_node(op, operands, outputs, **attributes)
        if op in ("Gather", "TopK", "ArgMax", "Cast", "NonZero"):
            kinds = [T.FLOAT if op in ("Gather", "TopK") else T.INT64, T.INT64][:results]
        else:
            kinds = [T.FLOAT] * results
        ends = [helper.make_tensor_value_info(o, k, None) for o, k in zip(outputs, kinds)]
        graph = helper.make_graph([node], name, inputs, ends, known)
        return name, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    for c, o, k, s, p, g, extents, d in CONVOLUTIONS:
        n = len(extents)
        name = f"convolution {c} to {o} of {'x'.join(map(str, extents))}, {k} by {s}" + (f" in {g}" if g > 1 else "")
        yield model(name, "Conv", [[1, c, *extents]], [weight(o, c // g, *[k] * n), weight(o)],
                    kernel_shape=[k] * n, strides=[s] * n, pads=[p] * 2 * n, group=g, dilations=[d] * n)
    for c, o, k, s, p, extents in TRANSPOSED:
        n = len(extents)
        yield model(f"transposed convolution {c} to {o}, {k} by {s}", "ConvTranspose", [[1, c, *extents]],
                    [weight(c, o, *[k] * n), weight(o)], kernel_shape=[k] * n, strides=[s] * n, pads=[p] * 2 * n)
    for m, k, n in PRODUCTS:
        yield model(f"product {m} x {k} x {n}", "MatMul", [[m, k]], [weight(k, n)])
    for b, m, k, n in BATCHES:
        yield model(f"{b} products {m} x {k} x {n}", "MatMul", [[b, m, k], [b, k, n]])
    for function in FUNCTIONS:
        yield model(function, function, [PLANES])
    for op in ("Add", "Mul", "Div", "Max", "PRelu"):
        yield model(f"{op} of channels", op, [PLANES, [64, 1, 1]])
    for name, op, shapes, attributes in PLAIN:
        yield model(name, op, shapes, **attributes)
    for rows, columns in ((512, 768), (64, 4096)):
        yield model(f"layer norm {rows} x {columns}", "LayerNormalization", [[1, rows, columns]],
                    [weight(columns), weight(columns)], axis=-1)
    yield model("instance norm", "InstanceNormalization", [[1, 64, 128, 128]], [weight(64), weight(64)])
    for op, shape, axes in (("ReduceMean", [512, 768], [1]), ("ReduceMean", [1, 960, 14, 14], [2, 3]), ("ReduceMean", PLANES, [1]),
                            ("ReduceMax", [512, 1024], [0]), ("ReduceL2", [512, 768], [1])):
        yield model(f"{op} of {shape} along {axes}", op, [shape], [np.array(axes)])
    border = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    for mode in ("reflect", "constant", "edge"):
        yield model(f"border: {mode}", "Pad", [PLANES], [border], mode=mode)
    none, twice = np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)
    for name, shape, scales, sizes, attributes in (
            ("nearest", [1, 128, 40, 40], twice, None, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
            ("linear", [1, 64, 64, 64], twice, None, {}), ("cubic", [1, 3, 128, 128], twice, None, {}),
            ("linear", [1, 21, 65, 65], none, np.array([1, 21, 513, 513]), {"coordinate_transformation_mode": "align_corners"})):
        weights = [none, scales] + ([] if sizes is None else [sizes])
        yield model(f"resize {name} of {shape}", "Resize", [shape], weights, mode=name, **attributes)
    yield model("every other pixel", "Slice", [PLANES], [np.array(v) for v in ([0, 0], [112, 112], [2, 3], [2, 2])])
    yield model("middle", "Slice", [PLANES], [np.array(v) for v in ([8, 8], [104, 104], [2, 3])])
    yield model("three parts", "Split", [[1, 512, 2304]], results=3, axis=2, num_outputs=3)
    yield model("tokens", "Gather", [], [weight(30522, 768), random.integers(0, 30522, (1, 512))])
    yield model("gather columns", "Gather", [[1, 1024, 64]], [random.integers(0, 1024, 512)], axis=1)
    yield model("gather elements", "GatherElements", [[512, 1024]], [random.integers(0, 1024, (512, 256))], axis=1)
    yield model("scatter rows", "ScatterND", [[1024, 256]], [random.permutation(1024)[:300].reshape(-1, 1), weight(300, 256)])
    for n, k in ((50257, 50), (8400, 300)):
        yield model(f"top {k} of {n}", "TopK", [[1, n]], [np.array([k])], results=2)
    yield model("running sum", "CumSum", [[512, 1024]], [np.array(1)])
    yield model("grid sample", "GridSample", [[1, 64, 64, 64], [1, 64, 64, 2]])
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for steps, batch, inputs, hidden, direction in RECURRENT:
            n = 1 + (direction == "bidirectional")
            weights = [weight(n, gates * hidden, inputs), weight(n, gates * hidden, hidden), weight(n, 2 * gates * hidden)]
            yield model(f"{op} of {steps} steps, {batch} x {hidden}", op, [[steps, batch, inputs]], weights,
                        hidden_size=hidden, direction=direction)
