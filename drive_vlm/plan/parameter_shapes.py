"""Names and shapes of every weight of a model, from its config.json alone: what torch's meta device would give, without torch.

The tests compare them with the native transformers classes on the meta device, name by name.
"""

from collections.abc import Callable
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, size: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (size,)}
    return shapes | ({f"{name}.bias": (size,)} if bias else {})


def _side(value: Any) -> int:
    """The side of a square given as a number or as [height, width]."""
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def num_patches(vision: dict[str, Any]) -> int:
    """Patches of one picture or tile."""
    return (_side(vision["image_size"]) // _side(vision["patch_size"])) ** 2


def head_dim(text: dict[str, Any]) -> int:
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def decoder(prefix: str, text: dict[str, Any]) -> Shapes:
    """A Llama-like decoder: Llama, Qwen2 (biases on q, k, v), Qwen3 (norms on q and k)."""
    kind, hidden, inner = text["model_type"], text["hidden_size"], text["intermediate_size"]
    bias = kind == "qwen2" or bool(text.get("attention_bias", False))
    queries = head_dim(text) * text["num_attention_heads"]
    keys = head_dim(text) * text["num_key_value_heads"]
    shapes: Shapes = {f"{prefix}.embed_tokens.weight": (text["vocab_size"], hidden)}
    for i in range(text["num_hidden_layers"]):
        layer = f"{prefix}.layers.{i}"
        shapes |= _linear(f"{layer}.self_attn.q_proj", hidden, queries, bias)
        shapes |= _linear(f"{layer}.self_attn.k_proj", hidden, keys, bias)
        shapes |= _linear(f"{layer}.self_attn.v_proj", hidden, keys, bias)
        shapes |= _linear(f"{layer}.self_attn.o_proj", queries, hidden, bias and kind != "qwen2")
        if kind == "qwen3":
            shapes |= _norm(f"{layer}.self_attn.q_norm", head_dim(text), False)
            shapes |= _norm(f"{layer}.self_attn.k_norm", head_dim(text), False)
        mlp_bias = bool(text.get("mlp_bias", False))
        shapes |= _linear(f"{layer}.mlp.gate_proj", hidden, inner, mlp_bias)
        shapes |= _linear(f"{layer}.mlp.up_proj", hidden, inner, mlp_bias)
        shapes |= _linear(f"{layer}.mlp.down_proj", inner, hidden, mlp_bias)
        shapes |= _norm(f"{layer}.input_layernorm", hidden, False)
        shapes |= _norm(f"{layer}.post_attention_layernorm", hidden, False)
    return shapes | _norm(f"{prefix}.norm", hidden, False)


def head(text: dict[str, Any]) -> Shapes:
    """lm_head, or nothing where it shares the embeddings."""
    return {} if text["tie_word_embeddings"] else {"lm_head.weight": (text["vocab_size"], text["hidden_size"])}


def siglip(prefix: str, vision: dict[str, Any], positions: int | None = None, clip: bool = False) -> Shapes:
    """SigLIP's tower without its pooling head; with `clip` CLIP's (class token, norm before the layers, no patch bias)."""
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    patch = _side(vision["patch_size"])
    shapes: Shapes = {f"{prefix}.embeddings.patch_embedding.weight": (hidden, 3, patch, patch)}
    if clip:
        shapes[f"{prefix}.embeddings.class_embedding"] = (hidden,)
        shapes |= _norm(f"{prefix}.pre_layrnorm", hidden)
    else:
        shapes[f"{prefix}.embeddings.patch_embedding.bias"] = (hidden,)
    places = positions or num_patches(vision) + clip
    shapes[f"{prefix}.embeddings.position_embedding.weight"] = (places, hidden)
    for i in range(vision["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", hidden, hidden)
        shapes |= _linear(f"{layer}.mlp.fc1", hidden, inner) | _linear(f"{layer}.mlp.fc2", inner, hidden)
        shapes |= _norm(f"{layer}.layer_norm1", hidden) | _norm(f"{layer}.layer_norm2", hidden)
    return shapes | _norm(f"{prefix}.post_layernorm", hidden)


def intern_vit(prefix: str, vision: dict[str, Any]) -> Shapes:
    """InternViT as transformers' InternVLVisionModel has it."""
    hidden, inner, patch = vision["hidden_size"], vision["intermediate_size"], _side(vision["patch_size"])
    bias, rms = bool(vision.get("attention_bias", False)), vision.get("norm_type", "layer_norm") == "rms_norm"
    shapes: Shapes = {
        f"{prefix}.embeddings.cls_token": (1, 1, hidden),
        f"{prefix}.embeddings.patch_embeddings.projection.weight": (hidden, 3, patch, patch),
        f"{prefix}.embeddings.patch_embeddings.projection.bias": (hidden,),
    }
    if vision.get("use_mask_token"):
        shapes[f"{prefix}.embeddings.mask_token"] = (1, 1, hidden)
    if vision.get("use_absolute_position_embeddings", True):
        shapes[f"{prefix}.embeddings.position_embeddings"] = (1, num_patches(vision) + 1, hidden)
    for i in range(vision["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layer.{i}"
        shapes |= {f"{layer}.lambda_1": (hidden,), f"{layer}.lambda_2": (hidden,)}
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes |= _linear(f"{layer}.attention.{name}", hidden, hidden, bias)
        shapes |= _linear(f"{layer}.attention.projection_layer", hidden, hidden)
        if vision.get("use_qk_norm"):
            shapes |= _norm(f"{layer}.attention.q_norm", hidden, False)
            shapes |= _norm(f"{layer}.attention.k_norm", hidden, False)
        shapes |= _linear(f"{layer}.mlp.fc1", hidden, inner) | _linear(f"{layer}.mlp.fc2", inner, hidden)
        shapes |= _norm(f"{layer}.layernorm_before", hidden, not rms) | _norm(
            f"{layer}.layernorm_after", hidden, not rms
        )
    return shapes if vision.get("use_mean_pooling", True) else shapes | _norm(f"{prefix}.layernorm", hidden)


def internvl(config: dict[str, Any]) -> Shapes:
    vision, text = config["vision_config"], config["text_config"]
    width, hidden = vision["hidden_size"] * round(1 / config["downsample_ratio"]) ** 2, text["hidden_size"]
    projector = "model.multi_modal_projector"
    shapes = intern_vit("model.vision_tower", vision) | _norm(f"{projector}.layer_norm", width)
    shapes |= _linear(f"{projector}.linear_1", width, hidden) | _linear(f"{projector}.linear_2", hidden, hidden)
    return shapes | decoder("model.language_model", text) | head(text)


def llava_next(config: dict[str, Any]) -> Shapes:
    vision, text = config["vision_config"], config["text_config"]
    hidden, projector = text["hidden_size"], "model.multi_modal_projector"
    shapes: Shapes = {"model.image_newline": (hidden,)}
    shapes |= siglip("model.vision_tower", vision, clip=True)
    shapes |= _linear(f"{projector}.linear_1", vision["hidden_size"], hidden)
    shapes |= _linear(f"{projector}.linear_2", hidden, hidden)
    return shapes | decoder("model.language_model", text) | head(text)


def idefics3(config: dict[str, Any]) -> Shapes:
    vision, text = config["vision_config"], config["text_config"]
    width = vision["hidden_size"] * config["scale_factor"] ** 2
    shapes = siglip("model.vision_model", vision)
    shapes |= _linear("model.connector.modality_projection.proj", width, text["hidden_size"], False)
    return shapes | decoder("model.text_model", text) | head(text)


def siglip_qwen(config: dict[str, Any]) -> Shapes:
    """SigLIP2 + temporal embeddings + projector (two layers, or a resampler) + Qwen3: drive_vlm/models/siglip_qwen."""
    vision, text = config["vision_config"], config["text_config"]
    hidden, width = text["hidden_size"], vision["hidden_size"]
    shapes = siglip("model.vision_tower", vision)
    shapes |= {"model.temporal_embeddings.weight": (config["max_frames"], width)}
    if config["projector_type"] == "resampler":
        shapes |= _resampler("model.projector", config)
    else:
        shapes |= _linear("model.projector.linear_1", width, hidden)
        shapes |= _linear("model.projector.linear_2", hidden, hidden)
    return shapes | decoder("model.language_model", text) | head(text)


def _resampler(prefix: str, config: dict[str, Any]) -> Shapes:
    """Perceiver resampler of siglip_qwen: queries, layers of cross attention and MLP, the way out to the language model."""
    vision = config["vision_config"]
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    shapes: Shapes = {f"{prefix}.queries": (config["num_queries"], width)}
    for i in range(config["resampler_layers"]):
        layer = f"{prefix}.layers.{i}"
        for name in ("query_norm", "feature_norm", "mlp_norm"):
            shapes |= _norm(f"{layer}.{name}", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.{name}", width, width)
        shapes |= _linear(f"{layer}.fc1", width, inner) | _linear(f"{layer}.fc2", inner, width)
    return (
        shapes | _norm(f"{prefix}.norm", width) | _linear(f"{prefix}.proj", width, config["text_config"]["hidden_size"])
    )


def minicpmv(config: dict[str, Any]) -> Shapes:
    """MiniCPM-V: SigLIP without its last layer's successor norm counted as one tower, a resampler, a Llama-3 body."""
    vision, text = config["vision_config"], config["text_config"]
    width, resampler = text["hidden_size"], "model.resampler"
    shapes = siglip("model.vision_tower", vision, positions=num_patches(vision))
    shapes |= {f"{resampler}.query": (config["query_num"], width), f"{resampler}.proj": (width, width)}
    shapes |= _linear(f"{resampler}.kv_proj", vision["hidden_size"], width, False)
    shapes |= {f"{resampler}.attn.in_proj_weight": (3 * width, width), f"{resampler}.attn.in_proj_bias": (3 * width,)}
    shapes |= _linear(f"{resampler}.attn.out_proj", width, width)
    for name in ("ln_q", "ln_kv", "ln_post"):
        shapes |= _norm(f"{resampler}.{name}", width)
    return shapes | decoder("model.language_model", text) | head(text)


def cogvlm2(config: dict[str, Any]) -> Shapes:
    """CogVLM2: EVA2 tower, convolution and gated projector, a Llama-3 body with a visual expert in every layer."""
    vision, text = config["vision_config"], config["text_config"]
    tower, inner, patch = vision["hidden_size"], vision["intermediate_size"], _side(vision["patch_size"])
    shapes: Shapes = {
        "model.vision_tower.cls_embedding": (1, tower),
        "model.vision_tower.position_embedding.weight": (num_patches(vision) + 1, tower),
        "model.vision_tower.patch_embedding.weight": (tower, 3, patch, patch),
        "model.vision_tower.patch_embedding.bias": (tower,),
    }
    for i in range(vision["num_hidden_layers"]):
        layer = f"model.vision_tower.layers.{i}"
        shapes |= _linear(f"{layer}.attention.query_key_value", tower, 3 * tower)
        shapes |= _linear(f"{layer}.attention.dense", tower, tower)
        shapes |= _linear(f"{layer}.mlp.fc1", tower, inner) | _linear(f"{layer}.mlp.fc2", inner, tower)
        shapes |= _norm(f"{layer}.input_layernorm", tower) | _norm(f"{layer}.post_attention_layernorm", tower)
    hidden, wide, projector = text["hidden_size"], text["intermediate_size"], "model.projector"
    shapes |= {f"{projector}.conv.weight": (tower, tower, 2, 2), f"{projector}.conv.bias": (tower,)}
    shapes |= {f"{projector}.{name}": (1, 1, hidden) for name in ("boi", "eoi")}
    shapes |= _linear(f"{projector}.linear_proj", tower, hidden, False) | _norm(f"{projector}.norm1", hidden)
    for name, sizes in {
        "gate_proj": (hidden, wide),
        "dense_h_to_4h": (hidden, wide),
        "dense_4h_to_h": (wide, hidden),
    }.items():
        shapes |= _linear(f"{projector}.{name}", *sizes, False)
    return shapes | _expert_decoder("model.language_model", text) | head(text)


def _expert_decoder(prefix: str, text: dict[str, Any]) -> Shapes:
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    fused = head_dim(text) * (text["num_attention_heads"] + 2 * text["num_key_value_heads"])
    shapes: Shapes = {f"{prefix}.embed_tokens.weight": (text["vocab_size"], hidden)}
    for i in range(text["num_hidden_layers"]):
        layer = f"{prefix}.layers.{i}"
        for side in ("vision", "language"):
            attention, mlp = f"{layer}.self_attn.{side}_expert", f"{layer}.mlp.{side}_mlp"
            shapes |= _linear(f"{attention}_query_key_value", hidden, fused, side == "vision")
            shapes |= _linear(f"{attention}_dense", hidden, hidden, False)
            shapes |= _linear(f"{mlp}.gate_proj", hidden, inner, False)
            shapes |= _linear(f"{mlp}.up_proj", hidden, inner, False)
            shapes |= _linear(f"{mlp}.down_proj", inner, hidden, False)
        shapes |= _norm(f"{layer}.input_layernorm", hidden, False)
        shapes |= _norm(f"{layer}.post_attention_layernorm", hidden, False)
    return shapes | _norm(f"{prefix}.norm", hidden, False)


def causal_lm(config: dict[str, Any]) -> Shapes:
    """A plain language model."""
    return decoder("model", config["text_config"]) | head(config["text_config"])


SHAPES: dict[str, Callable[[dict[str, Any]], Shapes]] = {
    "internvl": internvl,
    "llava_next": llava_next,
    "idefics3": idefics3,
    "siglip_qwen": siglip_qwen,
    "minicpmv": minicpmv,
    "cogvlm2": cogvlm2,
    "llama": causal_lm,
    "qwen2": causal_lm,
    "qwen3": causal_lm,
}
