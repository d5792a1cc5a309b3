"""Writes small random checkpoints with inputs and outputs, by torch and transformers, to frontend/tests/fixtures/lm.

    python3 -m venv VENV && VENV/bin/pip install torch transformers safetensors
    VENV/bin/python tests/scripts/lm_fixtures.py [FAMILY [ENCODER ...]]

Each folder has config.json, model.safetensors and expected.safetensors, which holds the inputs of a call and its outputs. They are
committed, so that the tests need no Python. Run from the root of the repository.
"""

import copy
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


def gpt2():
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64,
                                     scale_attn_by_inverse_layer_idx=True)
    decoder("gpt2", config)


ENCODERS = dict(
    bert=transformers.BertConfig(**SMALL, intermediate_size=24, num_labels=3),
    roberta=transformers.RobertaConfig(**SMALL, intermediate_size=24, type_vocab_size=1, num_labels=3),
    electra=transformers.ElectraConfig(**SMALL, intermediate_size=24, embedding_size=8, num_labels=3),
    distilbert=transformers.DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=4, hidden_dim=24,
                                             max_position_embeddings=64, num_labels=3),
    xlnet=transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=4, d_inner=24, num_labels=3),
    deberta=transformers.DebertaV2Config(**SMALL, intermediate_size=24, num_labels=3, type_vocab_size=2, relative_attention=True,
                                         position_buckets=6, max_relative_positions=16, pos_att_type=["p2c", "c2p"],
                                         share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False),
    debertaplain=transformers.DebertaV2Config(**SMALL, intermediate_size=24, num_labels=3, type_vocab_size=0,
                                              relative_attention=True, pos_att_type="c2p|p2c", max_relative_positions=5),
    bertpruned=transformers.BertConfig(**SMALL, intermediate_size=24, pruned_heads={0: [1], 1: [0, 3]}),
    distilbertpruned=transformers.DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=4, hidden_dim=24,
                                                   max_position_embeddings=64, pruned_heads={1: [2]}),
)
HEADS = ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = dict(bert="Bert", roberta="Roberta", electra="Electra", distilbert="DistilBert", xlnet="XLNet", deberta="DebertaV2",
               debertaplain="DebertaV2", bertpruned="Bert", distilbertpruned="DistilBert")


def encoder(family, head):
    """Two texts, the second one shorter."""
    config = copy.deepcopy(ENCODERS[family])
    if head == "ForQuestionAnswering":
        config.num_labels = 2
    renamed = dict(ForMaskedLM="LMHeadModel", ForQuestionAnswering="ForQuestionAnsweringSimple") if family == "xlnet" else {}
    cls = getattr(transformers, CLASSES[family] + renamed.get(head, head))
    model = random_weights(cls._from_config(config, attn_implementation="eager"), 3)
    random = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 40, (2, 7), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[1, 5:] = config.pad_token_id
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family in ("bert", "bertpruned", "electra", "xlnet", "deberta"):
        inputs["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=random)
    elif family == "roberta":
        inputs["token_type_ids"] = torch.zeros_like(ids)
    with torch.no_grad():
        # XLNet gives its memories too, which are no part of what an encoder is asked for.
        more = dict(use_mems=False) if family == "xlnet" else {}
        out = model(**inputs, **more, output_hidden_states=head == "Model", output_attentions=head == "Model")
    outputs = {}
    for key, value in out.items():
        if isinstance(value, tuple):
            outputs |= {f"{key}.{n}": v for n, v in enumerate(value)}
        else:
            outputs[key] = value
    if head == "ForPreTraining" and family == "bert":
        positions = torch.tensor([[1, 4], [0, 2]])
        logits = outputs["prediction_logits"]
        outputs["prediction_logits"] = torch.stack([logits[b, positions[b]] for b in range(2)])
        inputs["masked_positions"] = positions
    write(f"{family}-{head}", model, inputs, outputs)


def encoders():
    for family in ENCODERS:
        if sys.argv[2:] and family not in sys.argv[2:]:
            continue
        only = ("debertaplain", "bertpruned", "distilbertpruned")
        heads = ["Model"] if family in only else HEADS + dict(bert=["ForNextSentencePrediction", "ForPreTraining"], electra=["ForPreTraining"]).get(family, [])
        for head in heads:
            encoder(family, head)


def sequence(name, config, seed=7):
    """Two sources, the second one shorter."""
    model = random_weights(transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager"), seed)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=torch.Generator().manual_seed(5)))
    # Sinusoidal tables are parameters there, which are not trained.
    for part in [getattr(model, "model", None)]:
        for side in ("encoder", "decoder"):
            table = getattr(getattr(part, side, None), "embed_positions", None)
            if table is not None and hasattr(table, "create_weight"):
                table.weight = torch.nn.Parameter(table.create_weight(), requires_grad=False)
            elif table is not None and hasattr(table, "_init_weight"):
                table._init_weight()
    random = torch.Generator().manual_seed(seed + 1)
    source = torch.randint(3, config.vocab_size, (2, 7), generator=random)
    mask = torch.ones_like(source)
    mask[1, 4:] = 0
    tokens = torch.randint(3, config.vocab_size, (2, 11), generator=random)
    with torch.no_grad():
        out = model(input_ids=source, attention_mask=mask, decoder_input_ids=tokens, use_cache=False)
    outputs = {"logits": out.logits, "memory": out.encoder_last_hidden_state}
    write(name, model, {"source": source, "source_mask": mask, "tokens": tokens}, outputs)


TFIVE = dict(vocab_size=40, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
             relative_attention_max_distance=12, decoder_start_token_id=0)
BART = dict(vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=20, max_position_embeddings=32, decoder_start_token_id=0, pad_token_id=1,
            bos_token_id=0, eos_token_id=2)


def sequences():
    sequence("t5", transformers.T5Config(**TFIVE, num_decoder_layers=1))
    sequence("t5-gated", transformers.T5Config(**TFIVE, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    sequence("bart", transformers.BartConfig(**BART, scale_embedding=True))
    sequence("marian", transformers.MarianConfig(**BART, scale_embedding=True, activation_function="swish"))


FAMILIES = [llama, llama3, yarn, mistral, qwen2, qwen3, gpt2, encoders, sequences]

if __name__ == "__main__":
    for family in FAMILIES:
        if len(sys.argv) == 1 or family.__name__ in sys.argv[1:2]:
            family()
