"""Tiny random models of the real classes, with a real BPE tokenizer and processor, built offline in a second.

For tests, benchmarks and the quickstart; `tools/build_tiny_model.py` writes them to disk.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")

# The layout of InternVL3: ChatML turns, a newline after each picture.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


_INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def train_tokenizer(
    corpus: Iterable[str],
    vocab_size: int = 2000,
    special: Sequence[str] = SPECIAL,
    named: dict[str, str] | None = None,
) -> Any:
    """A byte-level BPE tokenizer trained on `corpus`, with `special` tokens, some `named` (by default those of InternVL3)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_INTERNVL_TOKENS if named is None else named,
    )


def build_tiny_internvl(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    max_tiles: int = 4,
    vocab_size: int = 2000,
    tie_word_embeddings: bool = False,
    seed: int = 0,
) -> Path:
    """Write a random InternVLForConditionalGeneration with tokenizer and processor to `out`; from_pretrained loads it."""
    import torch
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, vocab_size)
    grid = image_size // patch_size
    if grid * patch_size != image_size or grid % 2:
        raise ValueError(f"image_size {image_size} must be an even multiple of patch_size {patch_size}.")
    tokens = grid * grid // 4
    heads = max(1, hidden_size // 32)
    # The 0.02 of wide models would leave the layers of a narrow one near zero.
    init = hidden_size**-0.5
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=hidden_size,
            num_hidden_layers=vision_layers,
            num_attention_heads=heads,
            intermediate_size=hidden_size * 4,
            image_size=image_size,
            patch_size=patch_size,
            # The pre-training value 0.1 would keep a tower from scratch silent for long.
            layer_scale_init_value=1.0,
            initializer_range=init,
        ).to_dict(),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 4,
            num_hidden_layers=text_layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            max_position_embeddings=4096,
            tie_word_embeddings=tie_word_embeddings,
            initializer_range=init,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=tie_word_embeddings,
    )
    model = InternVLForConditionalGeneration(config)
    # transformers leaves them at zero.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=init)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": image_size, "width": image_size}, max_patches=max_tiles),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": image_size, "width": image_size}),
        image_seq_length=tokens,
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)


def build_tiny_siglip_qwen(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    vocab_size: int = 2000,
    seed: int = 0,
    projector_type: str = "mlp",
    pool_size: int = 2,
    num_queries: int = 8,
    resampler_layers: int = 1,
    max_frames: int = 16,
    text_width: int = 0,
    heads: int = 0,
) -> Path:
    """Write a random SigLIP tower + Qwen3 with tokenizer and processor to `out`.

    projector_type to max_frames are of SiglipQwenConfig; text_width is the language model's own width, heads those of the tower.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    from drive_vlm.models.siglip_qwen.compose import write_model
    from drive_vlm.models.siglip_qwen.processing import SPECIAL as PICTURES

    torch.manual_seed(seed)
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} must be a multiple of patch_size {patch_size}.")
    tokenizer = train_tokenizer(corpus, vocab_size, (*SPECIAL[:3], *PICTURES), {})
    # They are not special tokens in Qwen3 either.
    tokenizer.add_tokens(["<think>", "</think>"])
    text_width = text_width or hidden_size
    text_heads = max(1, text_width // 32)
    # As in build_tiny_internvl.
    init = hidden_size**-0.5
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=hidden_size,
            num_hidden_layers=vision_layers,
            num_attention_heads=heads or max(1, hidden_size // 32),
            intermediate_size=hidden_size * 4,
            image_size=image_size,
            patch_size=patch_size,
            vision_use_head=False,
        )
    )
    language = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=text_width,
            intermediate_size=text_width * 4,
            num_hidden_layers=text_layers,
            num_attention_heads=text_heads,
            num_key_value_heads=max(1, text_heads // 2),
            head_dim=32,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=init,
        )
    )
    pixels = SiglipImageProcessor(size={"height": image_size, "width": image_size})
    return write_model(
        out, tower, language, tokenizer, pixels, thinks=True, initializer_range=init, projector_type=projector_type,
        pool_size=pool_size, num_queries=num_queries, resampler_layers=resampler_layers, max_frames=max_frames,
    )  # fmt: skip


def corpus_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """All words of conversation or messages rows, for `train_tokenizer`."""
    return [
        json.dumps(turn, ensure_ascii=False)
        for row in rows
        for turn in row.get("conversations", row.get("messages", []))
    ]


def compose_internvl(
    out: str | Path,
    vision: str | Path,
    language: Any,
    tokenizer: Any,
    image_size: int = 224,
    max_tiles: int = 6,
    seed: int = 0,
) -> Path:
    """Write an InternVLForConditionalGeneration with processor to `out`; drive_vlm.models.load_family loads it.

    Args:
        vision: directory of a tower whose `last_hidden_state float[P, 1 + L, Dv]` begins with a class token (DINOv2).
        language: a causal language model; its embeddings grow by the picture tokens.
        tokenizer: its fast tokenizer; it must know ChatML's <|im_start|> and <|im_end|>.
        image_size: side of a tile in pixels, an even multiple of the tower's patch size.
        seed: of the projector's and the new tokens' random weights.

    Raises ValueError for an image size that does not divide, and for a tokenizer without ChatML.
    """
    import torch
    from transformers import AutoModel, InternVLConfig, InternVLForConditionalGeneration

    torch.manual_seed(seed)
    tower = AutoModel.from_pretrained(vision, dtype=torch.float32)
    tower.config._name_or_path = ""
    patch = tower.config.patch_size
    grid = image_size // patch
    if grid * patch != image_size or grid % 2:
        raise ValueError(f"image_size {image_size} must be an even multiple of the tower's patch size {patch}.")
    processor = _processor(vision, tokenizer, image_size, grid * grid // 4, max_tiles)
    tokenizer = processor.tokenizer
    language.resize_token_embeddings(max(len(tokenizer), language.config.vocab_size), mean_resizing=False)
    language.config.eos_token_id, language.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = InternVLConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_id=processor.image_token_id,
        image_seq_length=processor.image_seq_length,
        downsample_ratio=0.5,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    model = InternVLForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)


def _processor(vision: str | Path, tokenizer: Any, image_size: int, tokens: int, max_tiles: int) -> Any:
    """InternVL's processor with the language model's words, the picture tokens and the tower's pixel statistics."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor, PreTrainedTokenizerFast

    if not {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_vocab()):
        raise ValueError("The tokenizer has no <|im_start|> and <|im_end|>: the chat template writes ChatML turns.")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_INTERNVL_TOKENS,
    )
    size = {"height": image_size, "width": image_size}
    stored = Path(vision) / "preprocessor_config.json"
    pixels = json.loads(stored.read_text()) if stored.is_file() else {}
    pixels = {name: pixels[name] for name in ("image_mean", "image_std") if name in pixels}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, max_patches=max_tiles, **pixels),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size, **pixels),
        image_seq_length=tokens,
        chat_template=CHAT_TEMPLATE,
    )
