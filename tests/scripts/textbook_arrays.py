"""Writes examples/textbook/arrays.safetensors: for each listing of examples/textbook weights, inputs, and the outputs of a transcription
with torch. Run from the root of the repository, in the environment of lm_fixtures.py.

The names of arrays are LISTING.PARAMETER, LISTING.in.INPUT and LISTING.out.OUTPUT.
"""

import math

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

E, INNER, WORDS, LONGEST, HEADS = 8, 12, 11, 16, 2
arrays = {}
random = torch.Generator().manual_seed(20)


def normal(*shape):
    return torch.randn(shape, generator=random) * 0.5


def tokens(*shape, below=WORDS):
    return torch.randint(0, below, shape, generator=random)


def keep(listing, parameters, inputs, outputs):
    groups = [("", parameters), ("in.", inputs), ("out.", outputs)]
    arrays.update({f"{listing}.{kind}{k}": v.detach().contiguous().clone() for kind, group in groups for k, v in group.items()})


def randomize(module):
    """Norms near one, all else large enough to matter."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(normal(*p.shape) + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


# (a) In Keras' own terms: kernels are [in, heads, size], einsum as keras.layers.MultiHeadAttention has it.
def keras():
    p = {"embed.weight": normal(WORDS, E)}
    wide = HEADS * E
    for place in ["encoder.attention", "decoder.own", "decoder.cross"]:
        for name, a, b in [("query", E, wide), ("key", E, wide), ("value", E, wide), ("output", wide, E)]:
            p |= {f"{place}.{name}.weight": normal(a, b), f"{place}.{name}.bias": normal(b)}
    for name, b in [("encoder.dense", E), ("decoder.dense", E), ("words", WORDS)]:
        p |= {f"{name}.weight": normal(E, b), f"{name}.bias": normal(b)}

    def dense(name, x):
        return x @ p[name + ".weight"] + p[name + ".bias"]

    def attention(place, x, memory, causal):
        split = lambda name, x: dense(f"{place}.{name}", x).reshape(*x.shape[:2], HEADS, E)
        q, k, v = split("query", x), split("key", memory), split("value", memory)
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(E)
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril() == 0, -math.inf)
        made = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        return dense(f"{place}.output", made.reshape(*x.shape[:2], wide))

    source, target = tokens(3, 6), tokens(3, 4)
    for name, causal in [("keras", False), ("keras_causal", True)]:
        x = F.embedding(source, p["embed.weight"])
        memory = F.relu(dense("encoder.dense", attention("encoder.attention", x, x, False)))
        y = F.embedding(target, p["embed.weight"])
        y = attention("decoder.cross", attention("decoder.own", y, y, causal), memory, False)
        y = dense("words", F.relu(dense("decoder.dense", y))).softmax(-1)
        keep(name, p, {"source": source, "target": target}, {"probabilities": y})


class PostNorm(nn.Module):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(E, HEADS, batch_first=True)
            self.norm1, self.norm2 = nn.LayerNorm(E), nn.LayerNorm(E)
            self.ffn = nn.Sequential(nn.Linear(E, INNER), nn.ReLU(), nn.Linear(INNER, E))

        def forward(self, x, mask):
            attn, _ = self.attn(x, x, x, attn_mask=mask)
            return self.norm2(self.ffn(self.norm1(x + attn)))

    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Embedding(WORDS, E), nn.Embedding(LONGEST, E)
        self.layers = nn.ModuleList([self.Layer(), self.Layer()])
        self.head = nn.Linear(E, WORDS)

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.embed(tokens) + self.positions(torch.arange(length))
        for layer in self.layers:
            x = layer(x, torch.ones(length, length).tril() == 0)
        return self.head(x)


class MultiHeadAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Linear(E, E) for _ in range(4))

    def forward(self, q, k, v, mask=None):
        split = lambda x: x.view(*x.shape[:2], HEADS, E // HEADS).transpose(1, 2)
        q, k, v = split(self.w_q(q)), split(self.w_k(k)), split(self.w_v(v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(E // HEADS)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        made = torch.softmax(scores, dim=-1) @ v
        return self.w_o(made.transpose(1, 2).reshape(*made.shape[:1], -1, E))


class TransformerBlock(nn.Module):
    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.attention = MultiHeadAttention()
        self.feed_forward = nn.Sequential(nn.Linear(E, INNER), activation(), nn.Linear(INNER, E))
        self.norm1, self.norm2 = nn.LayerNorm(E), nn.LayerNorm(E)

    def forward(self, x, mask):
        x = self.norm1(x + self.attention(x, x, x, mask))
        return self.norm2(x + self.feed_forward(x))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position, self.segment = nn.Embedding(WORDS, E), nn.Embedding(LONGEST, E), nn.Embedding(2, E)
        self.blocks = nn.ModuleList([TransformerBlock(nn.GELU) for _ in range(2)])
        self.mlm_dense, self.mlm_norm, self.mlm_bias = nn.Linear(E, E), nn.LayerNorm(E), nn.Parameter(torch.zeros(WORDS))
        self.nsp_dense, self.nsp_out = nn.Linear(E, E), nn.Linear(E, 2)

    def forward(self, ids, segments, mask):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1])) + self.segment(segments)
        for block in self.blocks:
            x = block(x, mask)
        h = self.mlm_norm(torch.relu(self.mlm_dense(x)))
        return h @ self.token.weight.T + self.mlm_bias, self.nsp_out(torch.relu(self.nsp_dense(x[:, 0])))


def modules():
    model, ids = randomize(PostNorm()), tokens(2, 7)
    keep("postnorm", dict(model.named_parameters()), {"tokens": ids}, {"logits": model(ids)})
    # The first text has no position that counts, the second one two, the third one all.
    mask = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    wide = mask[:, None, None, :]
    x = normal(3, 5, E)
    model = randomize(MultiHeadAttention())
    y = model(x, x, x, wide)
    means = model.w_o(model.w_v(x).mean(1, keepdim=True))
    assert torch.allclose(y[0], means[0].expand(5, E), atol=1e-6), "a fully masked row is the mean of the values"
    keep("attention", dict(model.named_parameters()), {"x": x, "mask": mask}, {"y": y})
    model = randomize(TransformerBlock())
    keep("block", dict(model.named_parameters()), {"x": x, "mask": mask}, {"y": model(x, wide)})
    model, ids, segments = randomize(Bert()), tokens(3, 5), tokens(3, 5, below=2)
    mlm, nsp = model(ids, segments, wide)
    keep("bert", dict(model.named_parameters()), {"ids": ids, "segments": segments, "mask": mask}, {"mlm": mlm, "nsp": nsp})


def gated():
    p = {f"w{n}.{kind}": normal(*shape) for n in (1, 2, 3) for kind, shape in (("weight", (5, E)), ("bias", (5,)))}
    x = normal(2, 3, E)
    of = lambda n: F.linear(x, p[f"w{n}.weight"], p[f"w{n}.bias"])
    keep("gated", p, {"x": x}, {"y": torch.clamp(of(1), min=0) * torch.sigmoid(of(2)) + of(3)})


def houses():
    model = randomize(nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)))
    mean, std = normal(13) * 10, normal(13).abs() + 0.5
    features = normal(4, 13) * 20
    price = model((features - mean) / std)
    keep("houses", dict(model.named_parameters()) | {"mean": mean, "std": std}, {"features": features}, {"price": price})


with torch.no_grad():
    keras()
    modules()
    gated()
    houses()
save_file(arrays, "examples/textbook/arrays.safetensors")
print(len(arrays), "arrays")
