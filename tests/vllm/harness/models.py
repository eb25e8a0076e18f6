"""Tiny models with random weights, made here: no downloads, the same bytes every time.

The weights are large enough for the outputs to depend visibly on all of the context: vLLM's own dummy
weights give tokens that hardly change when the KV cache is wrong, and then prove nothing. That they do
depend on every layer is a test of its own (test_models.py).
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SEED = 20_260_701
VOCABULARY = 2048
HIDDEN, INTERMEDIATE, LAYERS = 256, 512, 4
HEADS, KV_HEADS, HEAD = 4, 2, 64
LATENT, ROPE, NOPE, VALUE = 512, 64, 32, 32

_COMMON = dict(
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    head_dim=HEAD,
    vocab_size=VOCABULARY,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    hidden_act="silu",
    tie_word_embeddings=False,
    torch_dtype="float32",
    bos_token_id=1,
    eos_token_id=2,
)

CONFIGS = {
    "llama": {**_COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    # Multi-head latent attention; vLLM's CPU kernels take this latent size only. No experts.
    "mla": {
        **_COMMON,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_key_value_heads": HEADS,
        "kv_lora_rank": LATENT,
        "q_lora_rank": None,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": VALUE,
        "moe_intermediate_size": 128,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": LAYERS,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "attention_bias": False,
    },
    # Every other layer sees 256 tokens only: two groups of blocks per request.
    "window": {
        **_COMMON,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_local_base_freq": 10000.0,
        "sliding_window": 256,
        "sliding_window_pattern": 2,
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "query_pre_attn_scalar": HEAD,
        "tie_word_embeddings": True,
    },
    # Every other layer keeps a recurrent state (gated delta net) instead of keys and values.
    "hybrid": {
        **_COMMON,
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "num_experts_per_tok": 2,
        "num_experts": 4,
        "norm_topk_prob": True,
        # vLLM wants one layer with experts.
        "mlp_only_layers": list(range(1, LAYERS)),
        "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2),
        "full_attention_interval": 2,
    },
}

# Standard deviations by the last word of a tensor's name; what is not here is a norm.
_SCALES = {
    "embed_tokens": 1.0,
    "lm_head": 0.2,
    "gate": 0.05,
    "shared_expert_gate": 0.05,
    "gate_proj": 0.05,
    "up_proj": 0.05,
    "down_proj": 0.05,
    "conv1d": 0.3,
    "in_proj_ba": 0.02,
    "dt_bias": 0.1,
}
_ATTENTION_SCALE = 0.12
# Where a kind differs. Gemma multiplies its embedding by 16, shares it with the head, and norms what
# attention adds: with a large one every token would repeat itself. Qwen3-Next norms queries and keys
# and gates what attention adds, so that values have to be larger to be seen.
_SCALES_OF = {
    "window": {"embed_tokens": 0.004},
    "hybrid": {"v_proj": 0.5, "o_proj": 0.5},
}


def _shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, as checkpoints of the architecture have them."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not CONFIGS[kind]["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        of_layer = _attention_shapes(kind, layer)
        of_layer |= {
            "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
        }
        if kind == "hybrid" and layer == 0:
            of_layer = {n: shape for n, shape in of_layer.items() if not n.startswith("mlp.")}
            of_layer |= _expert_shapes(CONFIGS[kind])
        if kind == "window":
            of_layer["pre_feedforward_layernorm.weight"] = (HIDDEN,)
            of_layer["post_feedforward_layernorm.weight"] = (HIDDEN,)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    return shapes


def _expert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """A layer whose feed-forward part is a choice of experts, and one that is shared."""
    experts = [(f"experts.{n}", config["moe_intermediate_size"]) for n in range(config["num_experts"])]
    experts.append(("shared_expert", config["shared_expert_intermediate_size"]))
    shapes: dict[str, tuple[int, ...]] = {
        "mlp.gate.weight": (config["num_experts"], HIDDEN),
        "mlp.shared_expert_gate.weight": (1, HIDDEN),
    }
    for name, size in experts:
        shapes |= {
            f"mlp.{name}.gate_proj.weight": (size, HIDDEN),
            f"mlp.{name}.up_proj.weight": (size, HIDDEN),
            f"mlp.{name}.down_proj.weight": (HIDDEN, size),
        }
    return shapes


def _attention_shapes(kind: str, layer: int) -> dict[str, tuple[int, ...]]:
    if kind == "mla":
        return {
            "self_attn.q_proj.weight": (HEADS * (NOPE + ROPE), HIDDEN),
            "self_attn.kv_a_proj_with_mqa.weight": (LATENT + ROPE, HIDDEN),
            "self_attn.kv_a_layernorm.weight": (LATENT,),
            "self_attn.kv_b_proj.weight": (HEADS * (NOPE + VALUE), LATENT),
            "self_attn.o_proj.weight": (HIDDEN, HEADS * VALUE),
        }
    if CONFIGS[kind].get("layer_types", [""] * LAYERS)[layer] == "linear_attention":
        keys, values, heads = 2 * 64, 4 * 64, 4
        return {
            "linear_attn.in_proj_qkvz.weight": (2 * keys + 2 * values, HIDDEN),
            "linear_attn.in_proj_ba.weight": (2 * heads, HIDDEN),
            "linear_attn.conv1d.weight": (2 * keys + values, 1, 4),
            "linear_attn.A_log": (heads,),
            "linear_attn.dt_bias": (heads,),
            "linear_attn.norm.weight": (64,),
            "linear_attn.out_proj.weight": (HIDDEN, values),
        }
    gate = 2 if kind == "hybrid" else 1  # Qwen3-Next's query projection also makes an output gate
    shapes = {
        "self_attn.q_proj.weight": (gate * HEADS * HEAD, HIDDEN),
        "self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
    }
    if kind in ("window", "hybrid"):
        shapes |= {"self_attn.q_norm.weight": (HEAD,), "self_attn.k_norm.weight": (HEAD,)}
    return shapes


def _tensor(kind: str, name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if "norm" in name:
        # Gemma and Qwen3-Next store a norm's weight less one.
        stored_less_one = kind in ("window", "hybrid") and "linear_attn" not in name
        # Larger queries and keys look at fewer places, which makes for more varied tokens.
        value = 1.7 if kind == "window" and ("q_norm" in name or "k_norm" in name) else 1.0
        return np.full(shape, value - stored_less_one, np.float32)
    if name.endswith("A_log"):
        return np.log(np.linspace(0.5, 2.0, shape[0], dtype=np.float32))
    word = name.removesuffix(".weight").rsplit(".", 1)[-1]
    scale = {**_SCALES, **_SCALES_OF.get(kind, {})}.get(word, _ATTENTION_SCALE)
    return random.standard_normal(shape, np.float32) * np.float32(scale)


def make(kind: str, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the model into folder/kind unless it is there, and returns that path."""
    target = pathlib.Path(folder, kind)
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: an interrupted run leaves nothing that looks whole.
    draft = pathlib.Path(tempfile.mkdtemp(dir=target.parent))
    random = np.random.default_rng(SEED)
    weights = {n: _tensor(kind, n, s, random) for n, s in _shapes(kind).items()}
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    (draft / "config.json").write_text(json.dumps(CONFIGS[kind], indent=1))
    try:
        draft.rename(target)
    except OSError:  # somebody else was first
        shutil.rmtree(draft)
    return target
