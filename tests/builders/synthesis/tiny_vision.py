"""Tiny random detectors and segmenters of the real classes, written as save_pretrained does: a part of the tests of the steps.

Random weights find random things: what they are good for is that pictures, texts and boxes go through the real classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# First: it lets torchvision's wheel live beside a CPU torch.
import drive_vlm  # noqa: F401

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    "?",
    "car",
    "truck",
    "bus",
    "traffic",
    "cone",
    "light",
    "person",
    "tri",
    "##cycle",
)


def _seeded(seed: int = 0) -> None:
    import torch

    torch.manual_seed(seed)


def tiny_grounding_dino(out: Path, size: int = 64, kind: str = "grounding-dino") -> Path:
    """A GroundingDINO (or "mm-grounding-dino") whose tokenizer knows WORDS."""
    import transformers as hf

    _seeded()
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    swin = hf.SwinConfig(
        image_size=size,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = hf.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    sizes: dict[str, Any] = {
        "backbone_config": swin, "text_config": text, "num_queries": 12, "encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2,
        "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "d_model": 32, "max_text_len": 32, "num_feature_levels": 3,
    }  # fmt: skip
    if kind == "grounding-dino":
        model = hf.GroundingDinoForObjectDetection(hf.GroundingDinoConfig(**sizes))
    else:
        model = hf.MMGroundingDinoForObjectDetection(hf.MMGroundingDinoConfig(**sizes))
    model.save_pretrained(out)
    tokenizer = hf.BertTokenizerFast(str(out / "vocab.txt"))
    pictures = hf.GroundingDinoImageProcessor(size={"shortest_edge": size, "longest_edge": size})
    hf.GroundingDinoProcessor(pictures, tokenizer).save_pretrained(out)
    return out


def tiny_clip_tokenizer(out: Path, words: Sequence[str] = ("car", "truck", "person")) -> Any:
    """A CLIP tokenizer of letters, for OWLv2 and SAM3."""
    import transformers as hf

    letters = [chr(code) for code in range(97, 123)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (out / "merges.txt").write_text("#version: 0.2\n")
    return hf.CLIPTokenizerFast(str(out / "vocab.json"), str(out / "merges.txt"))


def tiny_owlv2(out: Path, size: int = 32) -> Path:
    """An OWLv2 with a tokenizer of letters."""
    import transformers as hf

    _seeded()
    tokenizer = tiny_clip_tokenizer(out)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 8,
    }
    model = hf.Owlv2ForObjectDetection(hf.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(out)
    pictures = hf.Owlv2ImageProcessor(size={"height": size, "width": size})
    hf.Owlv2Processor(pictures, tokenizer).save_pretrained(out)
    return out


def tiny_sam(out: Path, size: int = 32) -> Path:
    """A SAM of `size` pixels."""
    import transformers as hf

    _seeded()
    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 8,
    }
    vision |= {"window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 8, "mlp_dim": 32}
    prompts = {"hidden_size": 16, "image_size": size, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    config = hf.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    hf.SamModel(config).save_pretrained(out)
    hf.SamImageProcessor(size={"longest_edge": size}, pad_size={"height": size, "width": size}).save_pretrained(out)
    return out


def tiny_sam2(out: Path, size: int = 64) -> Path:
    """A SAM2 of `size` pixels."""
    import transformers as hf

    _seeded()
    backbone = hf.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[size, size], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[4, 2, 4, 2], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = hf.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16,
        backbone_feature_sizes=[[size // 4, size // 4], [size // 8, size // 8], [size // 16, size // 16]],
    )  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": size, "patch_size": 16, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    config = hf.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    hf.Sam2Model(config).save_pretrained(out)
    mask_size = {"height": size // 4, "width": size // 4}
    hf.Sam2ImageProcessor(size={"height": size, "width": size}, mask_size=mask_size).save_pretrained(out)
    return out


def tiny_sam3(out: Path, size: int = 56) -> Path:
    """A SAM3 of `size` pixels with a tokenizer of letters."""
    import transformers as hf

    _seeded()
    tokenizer = tiny_clip_tokenizer(out)
    patches = size // 14
    backbone = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": size,
        "window_size": 2,
    }
    backbone |= {"global_attn_indexes": [0], "pretrain_image_size": size}
    sizes = [[patches * scale, patches * scale] for scale in (4, 2, 1)]
    vision = {
        "backbone_config": {"model_type": "sam3_vit_model"} | backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": sizes,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {
        "projection_dim": 32,
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    part: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2}
    layers = part | {"num_layers": 1, "intermediate_size": 32}
    config = hf.Sam3Config(
        vision_config=vision, text_config=text, geometry_encoder_config=layers, detr_encoder_config=layers,
        detr_decoder_config=layers | {"num_queries": 6}, mask_decoder_config=part,
    )  # fmt: skip
    hf.Sam3Model(config).save_pretrained(out)
    pictures = hf.Sam3ImageProcessor(size={"height": size, "width": size})
    hf.Sam3Processor(pictures, tokenizer).save_pretrained(out)
    return out
