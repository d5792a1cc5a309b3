"""Writes adapters of low rank for the small random checkpoints, by peft, with what the merged models give.

    python3 -m venv VENV && VENV/bin/pip install torch transformers safetensors peft
    VENV/bin/python tests/scripts/adapter_fixtures.py

Each folder below frontend/tests/fixtures/lm has the adapter's two files and expected.safetensors: the inputs of a call and the logits of
`merge_and_unload`. They are committed, so that the tests need no Python. Run from the root of the repository, after lm_fixtures.py.
"""

import pathlib

import peft
import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path("frontend/tests/fixtures/lm")


def write(name, base, seed, **config):
    model = transformers.AutoModelForCausalLM.from_pretrained(ROOT / base, attn_implementation="eager")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    folder = ROOT / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    merged = model.merge_and_unload().eval()
    tokens = torch.randint(0, merged.config.vocab_size, (2, 11), generator=random)
    with torch.no_grad():
        logits = merged(input_ids=tokens, use_cache=False).logits
    save_file({"tokens": tokens, "logits": logits.contiguous()}, folder / "expected.safetensors")
    print(name, sorted(p.name for p in folder.iterdir()))


write("adapter-llama", "llama", 1, r=4, lora_alpha=10, use_rslora=True, rank_pattern={"down_proj": 2},
      alpha_pattern={"v_proj": 3}, target_modules=["q_proj", "v_proj", "down_proj", "embed_tokens"], modules_to_save=["norm"])
write("adapter-gpt2", "gpt2", 2, r=3, lora_alpha=4, fan_in_fan_out=True, target_modules=["c_attn", "c_fc"], bias="lora_only")
