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
# As LLaVA-NeXT's own templates do it: the pictures of a turn before its words, none of it for a video.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As SmolVLM has it: one begin for the whole dialog, roles in plain words.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' if part['type'] == 'image' else '' }}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
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


def corpus_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """All words of conversation or messages rows, for `train_tokenizer`."""
    return [
        json.dumps(turn, ensure_ascii=False)
        for row in rows
        for turn in row.get("conversations", row.get("messages", []))
    ]


def _tower(hidden_size: int, layers: int, image_size: int, patch_size: int) -> dict[str, Any]:
    """What the configs of all towers name alike."""
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden_size // 32),
        "intermediate_size": hidden_size * 4,
        "image_size": image_size,
        "patch_size": patch_size,
    }


def language_numbers(tokenizer: Any, hidden_size: int, layers: int) -> dict[str, Any]:
    """What the configs of Qwen and Llama name alike."""
    heads = max(1, hidden_size // 32)
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 4096,
        # The 0.02 of wide models would leave the layers of a narrow one near zero.
        "initializer_range": hidden_size**-0.5,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_model(out: str | Path, model: Any, processor: Any) -> Path:
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)


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
    import transformers

    # The pixel shuffle makes one token of 2 x 2 patches.
    if image_size % (2 * patch_size):
        raise ValueError(f"image_size {image_size} must be an even multiple of patch_size {patch_size}.")
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, vocab_size)
    square = {"height": image_size, "width": image_size}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=square, max_patches=max_tiles),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=square),
        image_seq_length=(image_size // patch_size) ** 2 // 4,
        chat_template=CHAT_TEMPLATE,
    )
    text = language_numbers(tokenizer, hidden_size, text_layers)
    vision = transformers.InternVLVisionConfig(
        **_tower(hidden_size, vision_layers, image_size, patch_size),
        # The pre-training value 0.1 would keep a tower from scratch silent for long.
        layer_scale_init_value=1.0,
        initializer_range=text["initializer_range"],
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**text, tie_word_embeddings=tie_word_embeddings),
        image_token_id=processor.image_token_id,
        image_seq_length=processor.image_seq_length,
        downsample_ratio=0.5,
        tie_word_embeddings=tie_word_embeddings,
    )
    model = transformers.InternVLForConditionalGeneration(config)
    # transformers leaves them at zero.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=text["initializer_range"])
    return save_model(out, model, processor)


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
    import transformers

    from drive_vlm.models.siglip_qwen.compose import write_model
    from drive_vlm.models.siglip_qwen.processing import SPECIAL as PICTURES

    torch.manual_seed(seed)
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} must be a multiple of patch_size {patch_size}.")
    tokenizer = train_tokenizer(corpus, vocab_size, (*SPECIAL[:3], *PICTURES), {})
    # They are not special tokens in Qwen3 either.
    tokenizer.add_tokens(["<think>", "</think>"])
    vision = _tower(hidden_size, vision_layers, image_size, patch_size)
    vision["num_attention_heads"] = heads or vision["num_attention_heads"]
    text = language_numbers(tokenizer, text_width or hidden_size, text_layers)
    tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision, vision_use_head=False))
    # write_model names the padding token: known to the config here, it would make that token's embedding zero.
    language = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**text | {"pad_token_id": None}, head_dim=32, tie_word_embeddings=True)
    )
    pixels = transformers.SiglipImageProcessor(size={"height": image_size, "width": image_size})
    return write_model(
        out, tower, language, tokenizer, pixels, thinks=True, initializer_range=text["initializer_range"], max_frames=max_frames,
        projector_type=projector_type, pool_size=pool_size, num_queries=num_queries, resampler_layers=resampler_layers,
    )  # fmt: skip


def _even_tower(hidden_size: int, layers: int, image_size: int, patch_size: int) -> dict[str, Any]:
    if image_size % patch_size or image_size % 2:
        raise ValueError(f"image_size {image_size} must be even and a multiple of patch_size {patch_size}.")
    return {**_tower(hidden_size, layers, image_size, patch_size), "initializer_range": hidden_size**-0.5}


def build_tiny_llava_next(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 14,
    hidden_size: int = 64,
    vision_layers: int = 3,
    text_layers: int = 2,
    vocab_size: int = 2000,
    seed: int = 0,
) -> Path:
    """Write a random LlavaNextForConditionalGeneration (CLIP tower, Llama) to `out`, with the five grids of the published one."""
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, vocab_size, (*SPECIAL[:3], "<image>"), {})
    side = image_size
    grids = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    sizes = _even_tower(hidden_size, vision_layers, image_size, patch_size)
    vision = transformers.CLIPVisionConfig(**sizes, projection_dim=hidden_size)
    text = transformers.LlamaConfig(**language_numbers(tokenizer, hidden_size, text_layers), bos_token_id=None)
    config = transformers.LlavaNextConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch_size) ** 2,
        image_grid_pinpoints=grids,
        tie_word_embeddings=False,
    )
    square = {"height": side, "width": side}
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=grids
        ),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return save_model(out, transformers.LlavaNextForConditionalGeneration(config), processor)


def build_tiny_smolvlm(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    vocab_size: int = 2000,
    seed: int = 0,
    splits: int = 2,
    kind: str = "idefics3",
) -> Path:
    """Write a random Idefics3 (as SmolVLM-Instruct is), or with kind "smolvlm" one of SmolVLM's own class, to `out`.

    A picture's longer edge is `splits` tiles long.
    """
    import torch
    import transformers

    prefix = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}.get(kind)
    if prefix is None:
        raise ValueError(f"kind {kind!r} is unknown. Use idefics3 or smolvlm.")

    def made(name: str, *args: Any, **kwargs: Any) -> Any:
        """One of two sets of classes of one shape."""
        return getattr(transformers, f"{prefix}{name}")(*args, **kwargs)

    torch.manual_seed(seed)
    named = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(splits) for j in range(splits)]
    tokenizer = train_tokenizer(corpus, vocab_size, (*SPECIAL[:2], *named, *places), {})
    tokenizer.eos_token = "<end_of_utterance>"
    vision = made("VisionConfig", **_even_tower(hidden_size, vision_layers, image_size, patch_size))
    text = transformers.LlamaConfig(**language_numbers(tokenizer, hidden_size, text_layers), bos_token_id=None)
    config = made(
        "Config",
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    pixels = {"size": {"longest_edge": splits * image_size}, "max_image_size": {"longest_edge": image_size}}
    tokens = (image_size // patch_size // 2) ** 2
    edges = {"size": {"longest_edge": image_size}, "max_image_size": {"longest_edge": image_size}}
    video = [made("VideoProcessor", **edges)] if prefix == "SmolVLM" else []
    images = made("ImageProcessor", **pixels)
    processor = made("Processor", images, tokenizer, *video, tokens, chat_template=SMOLVLM_TEMPLATE)
    return save_model(out, made("ForConditionalGeneration", config), processor)
