"""Sentence embeddings of `kiln eval embed` against transformers and, where ONNX Runtime is there, against an ONNX form.

    VENV/bin/python tests/scripts/embed_reference.py FOLDER KILN [MODEL.onnx]
"""

import json
import subprocess
import sys

import numpy as np
import torch
import transformers

TEXTS = ["A man is eating food.", "The stock market fell today.", "naïve café, 你好", "One two three four five six seven eight. " * 20]


def main(folder, kiln, onnx=None):
    command = [kiln, "eval", "embed", folder, "--json"] + [a for t in TEXTS for a in ("--text", t)]
    ours = np.array(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["embeddings"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]")
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def pooled(hidden):
        mean = hidden.mean(axis=1)
        return mean[0] / np.linalg.norm(mean[0])

    theirs, third = [], []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            theirs.append(pooled(model(**ids).last_hidden_state.numpy()))
        if onnx:
            import onnxruntime

            session = onnxruntime.InferenceSession(onnx)
            names = [i.name for i in session.get_inputs()]
            third.append(pooled(session.run(None, {n: ids[n].numpy() for n in names})[0]))
    error = np.abs(ours - np.array(theirs)).max()
    print("greatest difference from transformers", error)
    good = error < 1e-4
    if onnx:
        cosines = (ours * np.array(third)).sum(axis=1)
        print("cosines with the ONNX form", cosines)
        good &= cosines.min() >= 0.99
    return 0 if good else 5


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
