"""Random small configurations of every family, as transformers has them. A new family is one function and one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

CONTEXT = 40

Values = dict[str, Any]


def of(values: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def rope(draw: st.DrawFn, *kinds: str) -> Values:
    """`rope_parameters`, scaled in one of the ways that the family knows."""
    kind = draw(of(["default", *kinds]))
    values: Values = {"rope_type": kind, "rope_theta": draw(of([100.0, 10_000.0, 500_000.0]))}
    if kind != "default":
        values["factor"] = draw(of([2.0, 8.0]))
    if kind in ("yarn", "llama3"):
        values["original_max_position_embeddings"] = draw(of([8, 16]))
    if kind == "llama3":
        values |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "yarn":
        chosen: list[Values] = [{}, {"attention_factor": 1.3}, {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}]
        values |= draw(of([*chosen, {"mscale": 1.0, "mscale_all_dim": 0.7}]))
    return values


SCALED = ("linear", "dynamic", "yarn", "llama3")


@st.composite
def sizes(draw: st.DrawFn) -> Values:
    """What the families in Llama's form have in common."""
    kv_heads = draw(of([1, 2, 3]))
    heads = kv_heads * draw(of([1, 2, 4]))
    return {
        "vocab_size": draw(st.integers(6, 90)),
        "hidden_size": heads * draw(of([4, 12])),  # transformers wants a multiple
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(of([4, 6, 16])),
        "intermediate_size": draw(st.integers(1, 70)),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": draw(of([1e-6, 1e-5])),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@st.composite
def gpt2(draw: st.DrawFn) -> Values:
    heads = draw(st.integers(1, 4))
    return {
        "vocab_size": draw(st.integers(6, 90)),
        "n_embd": heads * draw(of([8, 12])),
        "n_layer": draw(st.integers(1, 3)),
        "n_head": heads,
        "n_inner": draw(of([None, 7, 64])),
        "n_positions": CONTEXT,
        "activation_function": draw(of(["gelu_new", "gelu", "relu", "silu"])),
        "layer_norm_epsilon": draw(of([1e-5, 1e-6])),
        "scale_attn_weights": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@st.composite
def gpt_neox(draw: st.DrawFn) -> Values:
    heads = draw(st.integers(1, 4))
    return {
        "vocab_size": draw(st.integers(6, 90)),
        "hidden_size": heads * 16,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 70)),
        "max_position_embeddings": CONTEXT,
        "hidden_act": draw(of(["gelu", "gelu_new", "relu"])),
        "layer_norm_eps": draw(of([1e-5, 1e-6])),
        "use_parallel_residual": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "rope_parameters": draw(rope("linear", "dynamic")) | {"partial_rotary_factor": draw(of([0.25, 0.5, 1.0]))},
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@st.composite
def llama(draw: st.DrawFn) -> Values:
    chosen = {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    return draw(sizes()) | chosen | {"rope_parameters": draw(rope(*SCALED))}


@st.composite
def mistral(draw: st.DrawFn) -> Values:
    return draw(sizes()) | {"sliding_window": draw(of([None, 1, 3, 17])), "rope_parameters": draw(rope("yarn"))}


@st.composite
def windowed(draw: st.DrawFn) -> Values:
    """Qwen's windows in the upper layers."""
    return {
        "use_sliding_window": draw(st.booleans()),
        "sliding_window": draw(of([1, 4, 17])),
        "max_window_layers": draw(st.integers(0, 3)),
    }


@st.composite
def qwen2(draw: st.DrawFn) -> Values:
    values = draw(sizes())
    values["hidden_size"] = values["num_attention_heads"] * values.pop("head_dim")
    return values | draw(windowed()) | {"rope_parameters": draw(rope("yarn", "dynamic"))}


@st.composite
def qwen3(draw: st.DrawFn) -> Values:
    chosen = {"attention_bias": draw(st.booleans()), "rope_parameters": draw(rope("yarn"))}
    return draw(sizes()) | draw(windowed()) | chosen


@st.composite
def qwen3_moe(draw: st.DrawFn) -> Values:
    values = draw(sizes())
    experts = draw(st.integers(1, 6))
    return values | {
        "attention_bias": draw(st.booleans()),
        "rope_parameters": draw(rope("yarn")),
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": 4 * draw(st.integers(1, 7)),  # what transformers can multiply
        "norm_topk_prob": draw(st.booleans()),
        "decoder_sparse_step": draw(of([1, 2])),
        "mlp_only_layers": draw(of([[], [0], [1]])),
    }


@st.composite
def gemma3(draw: st.DrawFn) -> Values:
    values = draw(sizes())
    layers = values["num_hidden_layers"]
    types = st.lists(of(["full_attention", "sliding_attention"]), min_size=layers, max_size=layers)
    return values | {
        "attention_bias": draw(st.booleans()),
        "sliding_window": draw(of([1, 4, 17])),
        "layer_types": draw(st.none() | types),
        "query_pre_attn_scalar": draw(of([4, 7, 256])),
        "rope_parameters": {"full_attention": draw(rope("linear")), "sliding_attention": draw(rope())},
    }


@st.composite
def olmo2(draw: st.DrawFn) -> Values:
    values = draw(sizes())
    values["hidden_size"] = values["num_attention_heads"] * values.pop("head_dim")
    return values | {"attention_bias": draw(st.booleans()), "rope_parameters": draw(rope("linear", "yarn"))}


@st.composite
def bert(draw: st.DrawFn) -> Values:
    heads = draw(st.integers(1, 4))
    return {
        "vocab_size": draw(st.integers(6, 90)),
        "hidden_size": heads * draw(of([8, 12])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 70)),
        "hidden_act": draw(of(["gelu", "gelu_new", "relu"])),
        "max_position_embeddings": CONTEXT,
        "type_vocab_size": draw(st.integers(1, 3)),
        "layer_norm_eps": draw(of([1e-12, 1e-5])),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
    }


@st.composite
def roberta(draw: st.DrawFn) -> Values:
    padding = draw(of([0, 1, 3]))
    changed = {"pad_token_id": padding, "max_position_embeddings": CONTEXT + padding + 1}
    return draw(bert()) | changed | {"bos_token_id": 0, "eos_token_id": 2}


@st.composite
def modernbert(draw: st.DrawFn) -> Values:
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    types = st.lists(of(["full_attention", "sliding_attention"]), min_size=layers, max_size=layers)
    return {
        "vocab_size": draw(st.integers(6, 90)),
        "hidden_size": heads * draw(of([8, 12])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 70)),
        "hidden_activation": draw(of(["gelu", "silu"])),
        "classifier_activation": draw(of(["gelu", "relu"])),
        "max_position_embeddings": CONTEXT,
        "norm_eps": draw(of([1e-5, 1e-6])),
        "norm_bias": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "decoder_bias": draw(st.booleans()),
        "classifier_bias": draw(st.booleans()),
        "local_attention": draw(of([2, 6, 30, 128])),
        "layer_types": draw(st.none() | types),
        "rope_parameters": {"full_attention": draw(rope("linear")), "sliding_attention": draw(rope())},
        "tie_word_embeddings": draw(st.booleans()),
        **{f"{token}_token_id": 0 for token in ("pad", "bos", "eos", "cls", "sep")},
    }


@st.composite
def towers(draw: st.DrawFn) -> Values:
    """What BART and Marian have in common."""
    width = draw(of([8, 24, 48]))
    return {
        "vocab_size": draw(st.integers(6, 90)),
        "d_model": width,
        "encoder_layers": draw(st.integers(1, 3)),
        "decoder_layers": draw(st.integers(1, 3)),
        "encoder_attention_heads": draw(of([1, 2, 4])),
        "decoder_attention_heads": draw(of([1, 2, 4])),
        "encoder_ffn_dim": draw(st.integers(1, 70)),
        "decoder_ffn_dim": draw(st.integers(1, 70)),
        "max_position_embeddings": CONTEXT,
        "activation_function": draw(of(["gelu", "relu", "silu"])),
        "scale_embedding": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": None,
        "decoder_start_token_id": draw(of([1, 2])),
    }


@st.composite
def marian(draw: st.DrawFn) -> Values:
    return draw(towers()) | {"share_encoder_decoder_embeddings": draw(st.booleans())}


@st.composite
def bart(draw: st.DrawFn) -> Values:
    return draw(towers())


@st.composite
def t5(draw: st.DrawFn) -> Values:
    return {
        "vocab_size": draw(st.integers(6, 90)),
        "d_model": draw(of([8, 24, 48])),
        "d_kv": draw(of([2, 5, 16])),
        "d_ff": draw(st.integers(1, 70)),
        "num_layers": draw(st.integers(1, 3)),
        "num_decoder_layers": draw(st.integers(1, 3)),
        "num_heads": draw(st.integers(1, 4)),
        "relative_attention_num_buckets": draw(of([8, 32])),
        "relative_attention_max_distance": draw(of([20, 128])),
        "feed_forward_proj": draw(of(["relu", "gated-gelu", "gated-silu"])),
        "layer_norm_epsilon": draw(of([1e-6, 1e-5])),
        "tie_word_embeddings": draw(st.booleans()),
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


@dataclass(frozen=True)
class Case:
    """A family, its classes in transformers, and its random configurations."""

    family: str
    config: str
    model: str
    draw: Callable[[], st.SearchStrategy[Values]]

    def __str__(self) -> str:
        return self.family


CASES = (
    Case("gpt2", "GPT2Config", "GPT2LMHeadModel", gpt2),
    Case("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", gpt_neox),
    Case("llama", "LlamaConfig", "LlamaForCausalLM", llama),
    Case("mistral", "MistralConfig", "MistralForCausalLM", mistral),
    Case("qwen2", "Qwen2Config", "Qwen2ForCausalLM", qwen2),
    Case("qwen3", "Qwen3Config", "Qwen3ForCausalLM", qwen3),
    Case("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", qwen3_moe),
    Case("gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM", gemma3),
    Case("olmo2", "Olmo2Config", "Olmo2ForCausalLM", olmo2),
    Case("bert", "BertConfig", "BertForMaskedLM", bert),
    Case("roberta", "RobertaConfig", "RobertaForMaskedLM", roberta),
    Case("modernbert", "ModernBertConfig", "ModernBertForMaskedLM", modernbert),
    Case("marian", "MarianConfig", "MarianMTModel", marian),
    Case("t5", "T5Config", "T5ForConditionalGeneration", t5),
    Case("bart", "BartConfig", "BartForConditionalGeneration", bart),
)
DECODERS, ENCODERS, ENCODER_DECODERS = CASES[:9], CASES[9:12], CASES[12:]
