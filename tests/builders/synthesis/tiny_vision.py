"""Tiny random detectors and segmenters of the real classes, written as save_pretrained does: a part of the tests of the steps.

Random weights find random things: what they are good for is that pictures, texts and boxes go through the real classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
