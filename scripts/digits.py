"""A small convolutional classifier of scikit-learn's handwritten digits, trained here and written as ONNX.

    digits.py FOLDER        writes digits.onnx, spread.onnx, calibration.npz, test.npz (with `labels`)

The images are those of the pinned scikit-learn package, which is not installed for them.  Three convolutions and a linear layer, trained with numpy alone from a fixed seed: the arithmetic is small enough, and no framework
has to be installed for it.  In spread.onnx the channels of the first layer are scaled apart (and back in the second), which changes
nothing in f32 but is what real networks have after batch normalization was folded in: one scale for all activations then costs
accuracy, and a budget has something to catch.
"""
import sys
from pathlib import Path

import common

common.enter_venv()
import numpy as np  # noqa: E402

IMAGES = ("scikit-learn==1.9.1", {"sklearn/datasets/data/digits.csv.gz": ("digits.csv.gz", "b47c8ad258c5ae282333c9f3b4afdca9")})


def patches(x):
    """3x3 neighbourhoods with zero padding: [N, C, H, W] to [N, H, W, C * 9]."""
    n, c, h, w = x.shape
    p = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    cut = np.stack([p[:, :, i:i + h, j:j + w] for i in range(3) for j in range(3)], axis=2)
    return cut.reshape(n, c * 9, h, w).transpose(0, 2, 3, 1)


def unpatch(g, c):
    """The transpose of `patches`."""
    n, h, w, _ = g.shape
    g = g.transpose(0, 3, 1, 2).reshape(n, c, 9, h, w)
    p = np.zeros((n, c, h + 2, w + 2), np.float32)
    for k in range(9):
        p[:, :, k // 3:k // 3 + h, k % 3:k % 3 + w] += g[:, :, k]
    return p[:, :, 1:-1, 1:-1]


def pool(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))


def forward(params, x):
    """Logits, and what the backward pass needs."""
    kept = []
    for n in range(3):
        w, b = params[2 * n], params[2 * n + 1]
        cols = patches(x)
        y = (cols @ w.reshape(len(w), -1).T + b).transpose(0, 3, 1, 2)
        kept.append((x.shape[1], cols, y))
        x = np.maximum(y, 0)
        if n > 0:
            x = pool(x)
    flat = x.reshape(len(x), -1)
    return flat @ params[6] + params[7], (kept, flat, x.shape)


def gradients(params, x, labels):
    logits, (kept, flat, shape) = forward(params, x)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    g = p / len(labels)
    grads = [None] * 6 + [flat.T @ g, g.sum(axis=0)]
    g = (g @ params[6].T).reshape(shape)
    for n in reversed(range(3)):
        channels, cols, y = kept[n]
        if n > 0:
            g = np.repeat(np.repeat(g, 2, axis=2), 2, axis=3) / 4
        g = (g * (y > 0)).transpose(0, 2, 3, 1)
        w = params[2 * n]
        grads[2 * n] = (g.reshape(-1, len(w)).T @ cols.reshape(-1, cols.shape[-1])).reshape(w.shape)
        grads[2 * n + 1] = g.sum(axis=(0, 1, 2))
        g = unpatch(g @ w.reshape(len(w), -1), channels)
    return grads


def train(x, labels, epochs=30):
    rng = np.random.default_rng(0)
    shapes = [(16, 1, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3)]
    params = []
    for s in shapes:
        params += [rng.normal(0, np.sqrt(2 / np.prod(s[1:])), s).astype(np.float32), np.zeros(s[0], np.float32)]
    params += [rng.normal(0, np.sqrt(1 / 128), (128, 10)).astype(np.float32), np.zeros(10, np.float32)]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    step = 0
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        for at in range(0, len(x), 64):
            batch = order[at:at + 64]
            step += 1
            # Adam (Kingma, Ba 2014), with a rate that falls to nothing.
            rate = 2e-3 * (1 - epoch / epochs)
            for p, m, v, g in zip(params, first, second, gradients(params, x[batch], labels[batch])):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                p -= rate * (m / (1 - 0.9 ** step)) / (np.sqrt(v / (1 - 0.999 ** step)) + 1e-8)
    return params


def spread(params):
    """Scales channels of the first layer apart, and back in the second."""
    factors = np.exp2(np.linspace(-5, 5, 16)).astype(np.float32)
    first, bias, second = params[0] * factors[:, None, None, None], params[1] * factors, params[2] / factors[None, :, None, None]
    return [first, bias, second, *params[3:]]


def write(params, path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(np.ascontiguousarray(p), f"p{n}") for n, p in enumerate(params)]
    nodes, name = [], "image"
    for n in range(3):
        conv = helper.make_node("Conv", [name, f"p{2 * n}", f"p{2 * n + 1}"], [f"c{n}"], f"conv{n}", pads=[1, 1, 1, 1],
                                kernel_shape=[3, 3])
        nodes += [conv, helper.make_node("Relu", [f"c{n}"], [f"r{n}"], f"relu{n}")]
        name = f"r{n}"
        if n > 0:
            nodes.append(helper.make_node("AveragePool", [name], [f"a{n}"], f"pool{n}", kernel_shape=[2, 2], strides=[2, 2]))
            name = f"a{n}"
    nodes += [helper.make_node("Flatten", [name], ["flat"], "flatten"),
              helper.make_node("Gemm", ["flat", "p6", "p7"], ["scores"], "linear")]
    graph = helper.make_graph(
        nodes, "digits", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def main(folder):
    folder = Path(folder)
    common.fetch(*IMAGES, folder)
    # A row an image: 8 x 8 greys from 0 to 16, and which digit it is.
    rows = np.loadtxt(folder / "digits.csv.gz", delimiter=",")
    x = (rows[:, :64].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = rows[:, 64].astype(np.int64)
    order = np.random.default_rng(1).permutation(len(x))
    train_at, test_at = order[:1000], order[1000:]
    params = train(x[train_at], labels[train_at])
    print("accuracy of the f32 model", (forward(params, x[test_at])[0].argmax(axis=1) == labels[test_at]).mean())
    write(params, folder / "digits.onnx")
    write(spread(params), folder / "spread.onnx")
    np.savez(folder / "calibration.npz", image=x[train_at[:300]], labels=labels[train_at[:300]])
    np.savez(folder / "test.npz", image=x[test_at], labels=labels[test_at])


if __name__ == "__main__":
    main(sys.argv[1])
