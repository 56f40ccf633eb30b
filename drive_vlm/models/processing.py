"""What the processors of our own model classes share: texts and pictures in, token ids and pixels out."""

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ProcessingKwargs


class PictureProcessor(ProcessorMixin):
    """An image processor and a tokenizer. `image_token` stands in a text for one picture."""

    image_token: str
    # What a template writes for a video, where the model's has one.
    video_token: str | None = None

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        # Generation needs it, and a saved tokenizer forgets it.
        tokenizer.padding_side = "left"

    def picture_texts(self, pictures: Sequence[Any]) -> list[str]:
        """What the tokenizer is given in the place of each picture's `image_token`."""
        raise NotImplementedError

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """`input_ids`, `attention_mask` of `text`, and the vision tensors of `images` (nested lists as well).

        Raises ValueError when the image tokens of all texts are not as many as the pictures, and for a video placeholder.
        """
        known: Any = ProcessingKwargs
        merged = self._merge_kwargs(known, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        token, video = self.image_token, self.video_token
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures: Any = [] if images is None else make_flat_list_of_images(images)
        written = sum(one.count(token) for one in texts)
        if texts and written != len(pictures):
            raise ValueError(f"The texts hold {written} {token}, but {len(pictures)} pictures are given.")
        if video is not None and any(video in one for one in texts):
            raise ValueError(f"A text holds {video}: give a video as its frames, one {token} for each.")
        merged["text_kwargs"].pop("return_mm_token_type_ids", None)
        data: dict[str, Any] = {}
        if texts:
            whole = iter(self.picture_texts(pictures))
            pieces = [one.split(token) for one in texts]
            filled = [first + "".join(next(whole) + piece for piece in rest) for first, *rest in pieces]
            data |= self.tokenizer(filled, **merged["text_kwargs"])
        if pictures:
            data |= self.image_processor(pictures, **merged["images_kwargs"])
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
