"""A CLIPModel of transformers as the same model in open_clip: one CLIP for libraries that know only one of the two."""

from typing import TYPE_CHECKING, Any

from drive_vlm.clip.encoder import ClipEncoder

if TYPE_CHECKING:
    import torch


def encoder_from_transformers(hf_model: Any) -> Any:
    """A ClipEncoder with the weights of a transformers CLIPModel."""
    encoder = ClipEncoder.from_config(open_clip_config(hf_model))
    encoder.model.load_state_dict(open_clip_weights(hf_model.state_dict()), strict=True)
    return encoder


def open_clip_config(hf_model: Any) -> dict[str, Any]:
    """The open_clip_config.json of the same architecture."""
    vision, text = hf_model.config.vision_config, hf_model.config.text_config
    if {vision.hidden_act, text.hidden_act} not in ({"gelu"}, {"quick_gelu"}):
        raise ValueError(f"open_clip has no activation {vision.hidden_act} / {text.hidden_act}")
    return {
        "model_cfg": {
            "embed_dim": hf_model.config.projection_dim,
            "quick_gelu": text.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.hidden_size,
                "layers": vision.num_hidden_layers,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
            },
        },
        "preprocess_cfg": {"size": vision.image_size},
    }


def open_clip_weights(hf_weights: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """State dict of an open_clip CustomTextCLIP from that of a transformers CLIPModel.

    The two hold the same numbers under other names; q, k, v are one matrix in open_clip, and the two projections
    are transposed there.
    """
    import torch

    text, vision = "text_model.", "vision_model."
    result = {
        "logit_scale": hf_weights["logit_scale"],
        "text.text_projection": hf_weights["text_projection.weight"].T,
        "text.token_embedding.weight": hf_weights[f"{text}embeddings.token_embedding.weight"],
        "text.positional_embedding": hf_weights[f"{text}embeddings.position_embedding.weight"],
        "visual.proj": hf_weights["visual_projection.weight"].T,
        "visual.class_embedding": hf_weights[f"{vision}embeddings.class_embedding"],
        "visual.conv1.weight": hf_weights[f"{vision}embeddings.patch_embedding.weight"],
        "visual.positional_embedding": hf_weights[f"{vision}embeddings.position_embedding.weight"],
    }
    pairs = {
        f"{text}final_layer_norm": "text.ln_final",
        # "layrnorm" is transformers' own spelling, kept there because published checkpoints have it.
        f"{vision}pre_layrnorm": "visual.ln_pre",
        f"{vision}post_layernorm": "visual.ln_post",
    }
    inside = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for source, target in ((text, "text."), (vision, "visual.")):
        layer = 0
        while f"{source}encoder.layers.{layer}.layer_norm1.weight" in hf_weights:
            here, there = f"{source}encoder.layers.{layer}.", f"{target}transformer.resblocks.{layer}."
            pairs |= {here + old: there + new for old, new in inside.items()}
            for kind in ("weight", "bias"):
                parts = [hf_weights[f"{here}self_attn.{name}_proj.{kind}"] for name in "qkv"]
                result[f"{there}attn.in_proj_{kind}"] = torch.cat(parts)
            layer += 1
    for old, new in pairs.items():
        result |= {f"{new}.{kind}": hf_weights[f"{old}.{kind}"] for kind in ("weight", "bias")}
    return result
