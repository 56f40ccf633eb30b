"""Processor and chat template: every frame becomes `<|vision_start|>`, its image tokens, `<|vision_end|>`."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.models.processing import PictureProcessor

IMAGE_TOKEN, VIDEO_TOKEN, START_TOKEN, END_TOKEN = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
)
# Qwen3's tokenizer has them; others get them.
SPECIAL = (START_TOKEN, END_TOKEN, IMAGE_TOKEN, VIDEO_TOKEN)

# As in Qwen3's own template: what an answer thought stands in a block before the answer to the last user turn, empty where it
# thought nothing, and is dropped from earlier ones.
_CHATML = (
    "{% set last = namespace(user=-1, text='') %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "ANSWER{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image_pad|>' }}{% elif part['type'] == 'video' %}{{ '<|video_pad|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}THINK{% endif %}"
)
_BLOCK = "{{ '<think>\\n\\n</think>\\n\\n' }}"
_ANSWER = (
    "{% if message['role'] == 'assistant' %}{% set last.text = message['content'] if message['content'] is string else "
    "message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{% set thought = '' %}{% if '</think>' in last.text %}"
    "{% set thought = last.text.split('</think>')[0].rstrip('\n').split('<think>')[-1].strip('\n') %}"
    "{% set last.text = last.text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > last.user %}{{ '<think>\n' + thought + '\n</think>\n\n' + last.text.lstrip('\n') }}"
    "{% else %}{{ last.text }}{% endif %}{% elif "
)


def chat_template(thinks: bool) -> str:
    """ChatML with one image token for each picture.

    With `thinks` answers follow an empty think block, as those of Qwen3 with enable_thinking=False. That is the default here, so
    that training, generation and GRPO agree without anybody passing anything; enable_thinking=True asks for an open end.
    """
    asked = f"{{% if enable_thinking is not defined or not enable_thinking %}}{_BLOCK}{{% endif %}}"
    start = "{% if message['content'] is string %}"
    chat = _CHATML.replace(f"ANSWER{start}", _ANSWER + start.removeprefix("{% if ") if thinks else start)
    return chat.replace("THINK", asked if thinks else "")


class SiglipQwenProcessor(PictureProcessor):
    """SigLIP's image processor, the language model's tokenizer, the image tokens of a frame and the frames of a row at most."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 81,
        max_frames: int = 16,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template, **kwargs)
        self.image_seq_length, self.max_frames = image_seq_length, max_frames
        self.image_token, self.video_token = IMAGE_TOKEN, VIDEO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.start_image_token_id = tokenizer.convert_tokens_to_ids(START_TOKEN)
        self.end_image_token_id = tokenizer.convert_tokens_to_ids(END_TOKEN)

    def picture_texts(self, pictures: Sequence[Any]) -> list[str]:
        return [START_TOKEN + IMAGE_TOKEN * self.image_seq_length + END_TOKEN] * len(pictures)
