"""Writes frontend/tests/fixtures/lm/beams.json: what transformers' greedy and beam search find with the random checkpoints of
lm_fixtures.py; and words.json, a tokenizer with a word for each of their 40 tokens. Run from the root of the repository, in the
environment of lm_fixtures.py.
"""

import json
import pathlib

import torch
import transformers

ROOT = pathlib.Path("frontend/tests/fixtures/lm")
WORDS = [f"w{n}" for n in range(40)]
SEARCHES = [
    dict(beams=1, length_penalty=1.0, ending="unlikely", tokens=9),
    dict(beams=3, length_penalty=1.0, ending="unlikely", tokens=9),
    dict(beams=4, length_penalty=0.0, ending="full", tokens=12, end_bias=4.0),
    dict(beams=4, length_penalty=2.0, ending="exact", tokens=12, end_bias=1.0),
    dict(beams=3, length_penalty=-1.0, ending="unlikely", tokens=9, no_repeat=2),
    dict(beams=3, length_penalty=1.5, ending="unlikely", tokens=14, end_bias=3.0),
]
EARLY = dict(unlikely=False, full=True, exact="never")


def main():
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(WORDS)}, "unk_token": "w3"},
    }
    (ROOT / "words.json").write_text(json.dumps(tokenizer) + "\n")
    cases = []
    for name in ["t5", "t5-gated", "bart", "marian", "gpt2", "llama"]:
        folder = ROOT / name
        sequence = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
        kind = transformers.AutoModelForSeq2SeqLM if sequence else transformers.AutoModelForCausalLM
        model = kind.from_pretrained(folder, attn_implementation="eager").eval()
        for seed, search in enumerate(SEARCHES):
            random = torch.Generator().manual_seed(seed)
            prompt = torch.randint(3, 40, (1, 6), generator=random)
            beams = search["beams"]
            more = dict(num_beams=beams, num_return_sequences=beams, length_penalty=search["length_penalty"],
                        early_stopping=EARLY[search["ending"]]) if beams > 1 else {}
            ends = model.generation_config.eos_token_id
            if "end_bias" in search and ends < 40:
                more["sequence_bias"] = {(ends,): search["end_bias"]}
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=search["tokens"], do_sample=False,
                                 no_repeat_ngram_size=search.get("no_repeat", 0), return_dict_in_generate=True,
                                 output_scores=True, **more)
            start = 1 if sequence else prompt.shape[1]
            found = []
            for n, row in enumerate(out.sequences.tolist()):
                made = row[start:]
                if ends in made[: search["tokens"]]:
                    # What follows the end is padding.
                    made = made[: made.index(ends) + 1]
                found.append({"tokens": made, "score": float(out.sequences_scores[n]) if beams > 1 else None})
            words = " ".join(WORDS[t] for t in prompt[0].tolist())
            cases.append({"model": name, "prompt": words, **search, "end": ends, "found": found})
            print(name, search, found[0])
    (ROOT / "beams.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
