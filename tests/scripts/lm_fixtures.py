"""Writes small random checkpoints with inputs and outputs, by torch and transformers, to frontend/tests/fixtures/lm.

    python3 -m venv VENV && VENV/bin/pip install torch transformers safetensors
    VENV/bin/python tests/scripts/lm_fixtures.py [FAMILY ...]

Each folder has config.json, model.safetensors and expected.safetensors, which holds the inputs of a call and its outputs. They are
committed, so that the tests need no Python. Run from the root of the repository.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path("frontend/tests/fixtures/lm")
SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
LLAMA = SMALL | dict(intermediate_size=24, num_key_value_heads=2)


def write(name, model, inputs, outputs):
    """The checkpoint, and what it gives."""
    folder = ROOT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    kept = {k: v.detach().contiguous().clone() for k, v in (inputs | outputs).items()}
    save_file(kept, folder / "expected.safetensors")
    print(name, {k: tuple(v.shape) for k, v in kept.items()})


def random_weights(model, seed):
    """Weights large enough that attention and activations are far from linear; norms near one."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=random) * 0.3)
            if "norm" in name.lower() and name.endswith("weight") or "ln_" in name and name.endswith("weight"):
                p.add_(1.0)
    return model.eval()


def decoder(name, config, seed=0):
    model = random_weights(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"), seed)
    tokens = torch.randint(0, config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    write(name, model, {"tokens": tokens}, {"logits": logits})


def llama():
    decoder("llama", transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False))


def llama3():
    scaling = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
    config = LLAMA | dict(head_dim=8, attention_bias=True, mlp_bias=True)
    decoder("llama3", transformers.LlamaConfig(**config, rope_scaling=scaling, rope_theta=500.0, tie_word_embeddings=True))


def yarn():
    scaling = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
    config = LLAMA | dict(head_dim=16)
    decoder("yarn", transformers.LlamaConfig(**config, rope_scaling=scaling, rope_theta=100.0, tie_word_embeddings=True))


def mistral():
    decoder("mistral", transformers.MistralConfig(**LLAMA, sliding_window=4, tie_word_embeddings=True))


def qwen2():
    decoder("qwen2", transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True))


def qwen3():
    decoder("qwen3", transformers.Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True))


FAMILIES = [llama, llama3, yarn, mistral, qwen2, qwen3]

if __name__ == "__main__":
    for family in FAMILIES:
        if len(sys.argv) == 1 or family.__name__ in sys.argv[1:]:
            family()
