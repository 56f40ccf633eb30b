"""Processor and templates: a row's pictures first, then "Question: ... Answer:", and the answer, which is tokenized by itself.

The published code joins the ids of question and answer, so that no token spans "Answer:" and the first word. Here the template
writes a mark between the two, which the tokenizer takes as the end of a piece and drops.
"""

from collections.abc import Sequence
from typing import Any

from transformers import CLIPImageProcessorPil
from transformers.image_utils import PILImageResampling

from drive_vlm.models.processing import PictureProcessor

BOS, EOS, IMAGE_TOKEN = "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"
# A code point that stands for no character.
MARK = "\ufdef"

_PICTURES = (
    "{{ BOS }}{% set row = namespace(pictures=0) %}{% for message in messages %}{% if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{% if row.pictures %}{{ '\n' }}{% endif %}"
    "{{ IMAGE }}{% set row.pictures = row.pictures + 1 %}{% endfor %}{% endif %}{% endfor %}"
)
_TURNS = (
    "{% for message in messages %}{% set row.text = message['content'] if message['content'] is string else "
    "message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{% if message['role'] == 'system' %}"
    "{{ raise_exception('CogVLM2 has no system turn: move its words into the first question') }}"
    "{% elif message['role'] == 'user' %}QUESTION"
    "{% elif loop.last %}{{ MARK + row.text + EOS }}{% else %}EARLIER{% endif %}{% endfor %}"
)


def chat_template(version: str) -> str:
    """The published layout `chat` ("Question: ... Answer:"), `vqa` ("Short answer:") or `base` (the last question alone).

    Pictures stand in front of all words; where a row has several, a newline parts them, since adjacent ones would pass for one.
    """
    question = "{{ 'Question: ' + row.text + ' ASK:' }}"
    earlier = "{{ ' ' + row.text + '\n' }}"
    if version == "base":
        question = "{% if loop.last or loop.index0 == messages | length - 2 %}{{ row.text }}{% endif %}"
        earlier = ""
    words = {
        "QUESTION": question,
        "EARLIER": earlier,
        "ASK": "Short answer" if version == "vqa" else "Answer",
        "BOS": f"'{BOS}'",
        "EOS": f"'{EOS}'",
        "IMAGE": f"'{IMAGE_TOKEN}'",
        "MARK": f"'{MARK}'",
    }
    template = _PICTURES + _TURNS
    for name, text in words.items():
        template = template.replace(name, text)
    return template


def end_pieces_at_mark(tokenizer: Any) -> None:
    """Let the tokenizer end a piece at MARK and drop it; one that was saved so does already."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    own, probe = backend.pre_tokenizer, f"a{MARK}b"
    # Byte-level ones write MARK in other characters.
    if own is None or "".join(piece for piece, _ in own.pre_tokenize_str(probe)) != "ab":
        split = pre_tokenizers.Split(MARK, "removed")
        backend.pre_tokenizer = split if own is None else pre_tokenizers.Sequence([split, own])


class CogVLM2Processor(PictureProcessor):
    """Pictures scaled to one square by PIL's bicubic filter, Llama 3's tokenizer, and the tokens of a picture."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 2306,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(image_processor, CLIPImageProcessorPil):
            # transformers prefers torchvision, whose filter gives other pixels.
            image_processor = CLIPImageProcessorPil.from_dict(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, chat_template, **kwargs)
        end_pieces_at_mark(tokenizer)
        self.image_seq_length = image_seq_length
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def picture_texts(self, pictures: Sequence[Any]) -> list[str]:
        return [IMAGE_TOKEN * self.image_seq_length] * len(pictures)


def square_pixels(side: int) -> CLIPImageProcessorPil:
    """CLIP's mean and deviation; the picture is scaled straight to `side` x `side`, its shape is lost."""
    size = {"height": side, "width": side}
    return CLIPImageProcessorPil(size=size, do_center_crop=False, resample=PILImageResampling.BICUBIC)


def open_processor(path: str) -> CogVLM2Processor:
    """The processor of a directory or hub id; a published one holds a tokenizer only, and config.json says the rest.

    Raises ValueError for CogVLM 1, and for a tokenizer without Llama 3's tokens.
    """
    from transformers import AutoTokenizer, PreTrainedConfig
    from transformers.utils import cached_file

    from drive_vlm.models.cogvlm2.configuration import CogVLM2Config

    config = CogVLM2Config.from_dict(PreTrainedConfig.get_config_dict(path)[0])
    if cached_file(path, "processor_config.json", _raise_exceptions_for_missing_entries=False):
        return CogVLM2Processor.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    known = tokenizer.get_vocab()
    if lacking := [token for token in (BOS, EOS, IMAGE_TOKEN) if token not in known]:
        raise ValueError(
            f"{path}: its tokenizer has no {', '.join(lacking)}. Copy tokenizer.json from where the model came from."
        )
    tokenizer.pad_token, tokenizer.eos_token = IMAGE_TOKEN, EOS
    return CogVLM2Processor(
        square_pixels(config.vision_config.image_size),
        tokenizer,
        config.picture_tokens,
        chat_template=chat_template(config.template_version),
    )
