"""Writes frontend/tests/fixtures/lm/spm.gguf, a random Llama of one layer with a vocabulary of SentencePiece pieces, and spm.json with the
tokens that the package `sentencepiece` gives for some texts. Run from the root of the repository, in the environment of lm_fixtures.py with
`gguf` and `sentencepiece`.
"""

import io
import json
import pathlib

import numpy as np
import sentencepiece
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter, TokenType, quants

ROOT = pathlib.Path("frontend/tests/fixtures/lm")
TEXTS = ["the cat", "Hello, world 42", "你好", "  two  spaces ", "compile the compiler's compilation", "naïve café\n\ttab", "a"]
LAYERS, E, F, HEADS = 1, 32, 32, 4

text = pathlib.Path("README.md").read_text() + pathlib.Path("ARCHITECTURE.md").read_text()
made = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text.splitlines()), model_writer=made, model_type="bpe", vocab_size=420, byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.99, minloglevel=2)
model = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
count = model.vocab_size()


def kind(n):
    if model.is_unknown(n):
        return TokenType.UNKNOWN
    if model.is_control(n):
        return TokenType.CONTROL
    return TokenType.BYTE if model.is_byte(n) else TokenType.NORMAL


random = np.random.default_rng(12)
writer = GGUFWriter(str(ROOT / "spm.gguf"), "llama")
writer.add_context_length(64)
writer.add_embedding_length(E)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(F)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(10000.0)
writer.add_rope_dimension_count(E // HEADS)
writer.add_vocab_size(count)
writer.add_tokenizer_model("llama")
writer.add_token_list([model.id_to_piece(n) for n in range(count)])
writer.add_token_scores([model.get_score(n) for n in range(count)])
writer.add_token_types([kind(n) for n in range(count)])
writer.add_bos_token_id(model.bos_id())
writer.add_eos_token_id(model.eos_id())
writer.add_unk_token_id(model.unk_id())


def matrix(name, rows, columns):
    data = quants.quantize((random.standard_normal((rows, columns)) * 0.3).astype(np.float32), Q.Q8_0)
    writer.add_tensor(name + ".weight", data, raw_dtype=Q.Q8_0)


matrix("token_embd", count, E)
for name, rows, columns in [("attn_q", E, E), ("attn_k", E, E), ("attn_v", E, E), ("attn_output", E, E), ("ffn_gate", F, E),
                            ("ffn_up", F, E), ("ffn_down", E, F)]:
    matrix(f"blk.0.{name}", rows, columns)
for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]:
    writer.add_tensor(name + ".weight", np.ones(E, dtype=np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
cases = [{"text": t, "tokens": [model.bos_id()] + model.encode(t)} for t in TEXTS]
(ROOT / "spm.json").write_text("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]\n")
print(cases)
