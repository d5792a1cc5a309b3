"""Writes frontend/tests/fixtures/lm/tiny.gguf and tiny.json: a random Llama in Q8_0 with a tokenizer of bytes, and its greedy
continuations by transformers. Run from the root of the repository, in the environment of lm_fixtures.py with `gguf` and `accelerate`.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter, TokenType, quants
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

ROOT = pathlib.Path("frontend/tests/fixtures/lm")
PROMPTS = ["the cat", "Hello, world 42", "你好", " "]
LAYERS, E, F, HEADS, KEYS = 2, 32, 64, 4, 2

letters = bytes_to_unicode()
merges = ["t h", "th e", "Ġ the", "c a", "ca t", "Ġ w", "l l", "o r"]
tokens = [letters[b] for b in range(256)] + [m.replace(" ", "") for m in merges] + ["<|end|>"]
random = np.random.default_rng(11)
writer = GGUFWriter(str(ROOT / "tiny.gguf"), "llama")
writer.add_context_length(64)
writer.add_embedding_length(E)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(F)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KEYS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(10000.0)
writer.add_rope_dimension_count(E // HEADS)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("smollm")
writer.add_token_list(tokens)
writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 1) + [TokenType.CONTROL])
writer.add_token_merges(merges)
writer.add_eos_token_id(len(tokens) - 1)
writer.add_bos_token_id(len(tokens) - 1)
writer.add_unk_token_id(len(tokens) - 1)
writer.add_add_bos_token(False)


def matrix(name, rows, columns):
    data = quants.quantize((random.standard_normal((rows, columns)) * 0.3).astype(np.float32), Q.Q8_0)
    writer.add_tensor(name + ".weight", data, raw_dtype=Q.Q8_0)


def norm(name):
    writer.add_tensor(name + ".weight", (1 + random.standard_normal(E) * 0.1).astype(np.float32))


matrix("token_embd", len(tokens), E)
for n in range(LAYERS):
    for name, rows, columns in [("attn_q", E, E), ("attn_k", E * KEYS // HEADS, E), ("attn_v", E * KEYS // HEADS, E),
                                ("attn_output", E, E), ("ffn_gate", F, E), ("ffn_up", F, E), ("ffn_down", E, F)]:
        matrix(f"blk.{n}.{name}", rows, columns)
    norm(f"blk.{n}.attn_norm")
    norm(f"blk.{n}.ffn_norm")
norm("output_norm")
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

model = transformers.AutoModelForCausalLM.from_pretrained(ROOT, gguf_file="tiny.gguf", dtype=torch.float32).eval()


def encode(text):
    """Byte-pair encoding without splitting, which these prompts do not need beyond spaces and digits."""
    words = [letters[b] for b in text.encode()]
    for merge in merges:
        a, b = merge.split()
        n = 0
        while n + 1 < len(words):
            if words[n] == a and words[n + 1] == b:
                words[n : n + 2] = [a + b]
            n += 1
    return [tokens.index(w) for w in words]


expected = []
for prompt in PROMPTS:
    ids = encode(prompt)
    made = list(ids)
    for _ in range(16):
        with torch.no_grad():
            made.append(int(model(torch.tensor([made])).logits[0, -1].argmax()))
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    losses = [-float(logs[n, ids[n + 1]]) for n in range(len(ids) - 1)]
    loss = float(np.mean(losses)) if losses else None
    expected.append({"prompt": prompt, "prompt_tokens": ids, "tokens": made[len(ids) :], "prompt_loss": loss})
(ROOT / "tiny.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
print(expected)
