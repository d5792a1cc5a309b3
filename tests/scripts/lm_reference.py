"""Greedy continuations and perplexity by transformers, to compare with `kiln generate` and `kiln eval` on the same weights.

    VENV/bin/python tests/scripts/lm_reference.py MODEL KILN [N] [TEXT]

MODEL is a GGUF file or a Hugging Face folder; its weights are expanded to f32. Compares N (64) greedy tokens of three prompts with
those of the program KILN, and says where they part and how near the two logits were. With TEXT, a file, the perplexities of it in
windows of 256 tokens that begin 128 apart must agree to 4 digits.
"""

import json
import pathlib
import subprocess
import sys

import gguf
import tokenizers
import torch
import transformers

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "你好,世界!"]


def tokens_of(path, tokenizer, text):
    """Tokens of a text: of a byte-level vocabulary in a GGUF file by the package `tokenizers`, since transformers does not split digits as such
    a file asks for."""
    if not path.is_file():
        return tokenizer(text).input_ids
    fields = gguf.GGUFReader(path).fields
    words, merges, kind = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "pre"))
    made = tokenizers.Tokenizer(tokenizers.models.BPE({w: n for n, w in enumerate(words)}, [tuple(m.split(" ")) for m in merges]))
    digits = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if kind == "smollm" else []
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(digits + [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return made.encode(text).ids


def perplexity(model, ids, window=256, stride=128):
    """Each token is predicted once, in the first window that has it, by what stands before it there."""
    losses, done = [], 1
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        with torch.no_grad():
            logits = model(input_ids=ids[None, start:end]).logits[0]
        first = max(done, start + 1)
        losses.append(torch.nn.functional.cross_entropy(logits[first - 1 - start:-1].double(), ids[first:end], reduction="none"))
        done = end
        if done == len(ids):
            return float(torch.cat(losses).mean().exp())


def main(path, kiln, count=64, text=None):
    count, path = int(count), pathlib.Path(path)
    where = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name) if path.is_file() else dict(
        pretrained_model_name_or_path=path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    same = True
    for prompt in PROMPTS:
        command = [kiln, "generate", str(path), "--prompt", prompt, "-n", str(count), "--ignore-eos", "--json"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        # transformers begins every text of a GGUF vocabulary with a token of its own, whatever the file says.
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not path.is_file()).input_ids
        assert ids.shape[1] == ours["prompt_tokens"], (ids, ours["prompt_tokens"])
        theirs, past, at = [], None, ids
        for n in range(count):
            with torch.no_grad():
                out = model(input_ids=at, past_key_values=past, use_cache=True)
            past, logits = out.past_key_values, out.logits[0, -1]
            token = int(logits.argmax())
            if n < len(ours["tokens"]) and ours["tokens"][n] != token:
                gap = float(logits[token] - logits[ours["tokens"][n]])
                print(f"  token {n}: ours {ours['tokens'][n]}, theirs {token}, {gap} apart")
                same = False
                break
            theirs.append(token)
            at = torch.tensor([[token]])
        agree = ours["tokens"] == theirs
        print(f"{prompt!r}: {len(theirs)} tokens {'equal' if agree else 'DIFFER'}: {ours['text']!r}")
        print(f"  prefill {ours['prefill_s']:.3f} s, {ours['tokens_per_s']:.1f} tokens/s")
        same &= agree
    if text:
        ids = torch.tensor(tokens_of(path, tokenizer, pathlib.Path(text).read_text()))
        command = [kiln, "eval", "perplexity", str(path), "--text", text, "--window", "256", "--stride", "128", "--json"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        theirs = perplexity(model, ids)
        agree = ours["tokens"] == len(ids) and f"{ours['perplexity']:.4g}" == f"{theirs:.4g}"
        print(f"perplexity of {len(ids)} tokens (ours {ours['tokens']}): {ours['perplexity']:.6f} and {theirs:.6f}, {'equal' if agree else 'DIFFER'} to 4 digits")
        same &= agree
    return 0 if same else 5


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
