"""Sample -> what the model sees: token ids, labels and vision tensors; its length without touching a pixel."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.caches.feature_cache import TRANSFORM, FeatureCache
from drive_vlm.data.chat import ChatRenderer, Rendered, has_thought, label_mask, turns_of
from drive_vlm.data.samples import IMAGE, VIDEO, BadRow, Sample
from drive_vlm.data.turns import one_row
from drive_vlm.data.video_times import video_layouts
from drive_vlm.data.vision import checked_image_size, load_image, load_levels, load_video, load_video_levels
from drive_vlm.models.vision import Layout, VisionAdapter
from drive_vlm.store.cache import cache_key

# Names of tokens of turns, texts and pictures in the vocabularies of the field, whichever of them the model's template writes.
_NAMED = re.compile(
    r"im_(start|end)|endoftext|(start|end|begin)_of_|(start|end)_header|"
    r"(?<![a-zA-Z])(eot|eom|eos|bos|INST|SYS|vision|image|img|IMG|video|audio|frame)(?![a-zA-Z])"
)

P = ParamSpec("P")
R = TypeVar("R")


def _of_one_row(
    method: "Callable[Concatenate[Encoder, Sample, P], R]",
) -> "Callable[Concatenate[Encoder, Sample, P], R]":
    """The method of an Encoder within the barrier of its row (turns.one_row)."""

    @functools.wraps(method)
    def call(self: "Encoder", sample: Sample, *args: P.args, **kwargs: P.kwargs) -> R:
        with one_row(sample.where):
            return method(self, sample, *args, **kwargs)

    return call


class Encoder:
    """Turns samples into `input_ids int64[T]`, `labels int64[T]` and the family's vision tensors.

    Args:
        tokenizer: the model's fast tokenizer.
        template: its chat template.
        vision: its picture side; None for a plain language model.
        num_frames: frames taken of a video, at most.
        max_length: rows longer than this are refused (BadRow too_long); None sets no limit.
        blank_images: put a grey picture of the same size in the place of every picture (the blind baseline).
        features: take the vision tower's features from this cache; no picture is opened.
        shuffle_frames: show the frames of a video in an order drawn from its row's id, the same each time (the control for
            questions about the order of events).
    """

    # A row without an answer cannot be learned.
    need_answer = True

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        vision: VisionAdapter | None,
        num_frames: int = 8,
        max_length: int | None = None,
        blank_images: bool = False,
        features: FeatureCache | None = None,
        shuffle_frames: bool = False,
    ) -> None:
        self.tokenizer, self.vision, self.num_frames, self.max_length = tokenizer, vision, num_frames, max_length
        self.blank_images, self.features, self.shuffle_frames = blank_images, features, shuffle_frames
        if features is not None and shuffle_frames and vision is not None and not vision.apart:
            raise ValueError(
                "--shuffle_frames with --feature_cache: this model's features are of several frames at once, in their order. "
                "Leave one of the two out."
            )
        self.chat = ChatRenderer(tokenizer, template, reserved_tokens(tokenizer, template, vision))
        self.template = template
        self.image_id = tokenizer.convert_tokens_to_ids(vision.image_token) if vision else None

    def fingerprint(self) -> str:
        """Key of everything that decides a row's length."""
        vision = self.vision.fingerprint() if self.vision else None
        backend = self.tokenizer.backend_tokenizer.to_str() if hasattr(self.tokenizer, "backend_tokenizer") else ""
        features = self.features.fingerprint() if self.features else None
        return cache_key(self.template, vision, self.num_frames, cache_key(backend), features, TRANSFORM)

    @_of_one_row
    def layouts_of(self, sample: Sample, max_tiles: int | None = None) -> Sequence[Layout]:
        """How each picture or frame is cut (its number of tiles, for most families), from headers or the feature cache."""
        if not (sample.images or sample.video):
            return []
        if self.vision is None:
            problem = "the row has pictures but the model is a plain language model"
            raise BadRow("no_vision", sample.where, problem, "Use a vision-language model")
        if self.features is not None:
            return self.features.layouts(sample, max_tiles)
        if sample.video:
            return video_layouts(self.vision.tiling, sample.video, self.num_frames, sample.where)
        sizes = [checked_image_size(path, sample.where) for path in sample.images]
        return [self.vision.layout(*size, len(sizes), max_tiles) for size in sizes]

    @_of_one_row
    def render(self, sample: Sample, layouts: Sequence[Layout], prompt: bool = False) -> Rendered:
        """The template's text with one image token for each picture or frame of `layouts`. Raises BadRow."""
        rendered, num_pictures = self._rendered(sample, layouts, prompt), len(layouts)
        written = rendered.text.count(self.vision.image_token) if self.vision else num_pictures
        if written != num_pictures:
            problem = f"the chat template wrote {written} image tokens for {num_pictures} pictures"
            way_out = "Check chat_template of the processor: it must write one image token for each picture"
            raise BadRow("image_count", sample.where, problem, way_out)
        return rendered

    def _rendered(self, sample: Sample, layouts: Sequence[Layout], prompt: bool) -> Rendered:
        turns = turns_of(sample, prompt)
        if self.vision is not None and self.vision.last_answer_only:
            turns = (*(dataclasses.replace(turn, learned=False) for turn in turns[:-1]), *turns[-1:])
        # A row whose own answer thinks is asked with the header that lets the model think.
        thinking = prompt and has_thought(sample.reference)
        if not sample.video or self.vision is None:
            return self.chat.render(turns, sample.where, prompt=prompt, thinking=thinking)
        if not self.chat.writes_video:
            turns = tuple(dataclasses.replace(turn, parts=_frames(turn.parts, len(layouts))) for turn in turns)
        vision = self.vision

        def write_frames(text: str) -> str:
            try:
                return vision.expand_video(text, layouts)
            except ValueError as error:
                # More frames than the model takes: the family raises ValueError, and the row is what is wrong.
                way = "Or use --on_bad_row skip"
                raise BadRow("too_many_frames", sample.where, str(error).rstrip("."), way) from error

        return self.chat.render(turns, sample.where, write_frames, prompt, thinking)

    def texts(self, sample: Sample, layouts: Sequence[Layout], prompt: bool = False) -> list[str]:
        """What the tokenizer sees of a row. Its length in the table is that of the longest."""
        return [self.render(sample, layouts, prompt).text]

    def lengths(self, texts: Sequence[str], layouts: Sequence[Sequence[Layout]]) -> list[int]:
        """Length in tokens of rendered `texts` with their pictures; one call to the tokenizer for all of them."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [
            len(ids) + sum(len(self.vision.image_ids(layout)) - 1 for layout in row) if self.vision else len(ids)
            for ids, row in zip(encoded, layouts, strict=True)
        ]

    def encode(self, sample: Sample, max_tiles: int | None = None, prompt: bool = False) -> dict[str, Any]:
        """One row: `input_ids`, `labels` (IGNORE_INDEX but for the assistant's words), `vision` tensors, `sample_id`.

        With `prompt` the last answer is left out and the generation header is added. Raises BadRow.
        """
        vision, layouts = self.load_vision(sample, max_tiles)
        ids, labels = self.tokens(sample, self.render(sample, layouts, prompt), layouts, prompt)
        return {"input_ids": ids, "labels": labels, "vision": vision, "sample_id": sample.id}

    def length(self, encoded: dict[str, Any]) -> int:
        """Tokens of an encoded row, as the table counts them."""
        return len(encoded["input_ids"])

    @_of_one_row
    def tokens(
        self, sample: Sample, rendered: Rendered, layouts: Sequence[Layout], prompt: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64[T], labels int64[T]) of a rendered row, pictures written out. Raises BadRow."""
        encoded = self.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        spoken = label_mask(np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2), rendered.spans)
        labels = np.where(spoken, ids, IGNORE_INDEX)
        if self.vision is not None:
            ids, labels = self._expand_pictures(
                ids, labels, [self.vision.image_ids(layout) for layout in layouts], sample
            )
        if self.max_length is not None and len(ids) > self.max_length:
            raise too_long(sample.where, len(ids), self.max_length)
        if not prompt and (not spoken.any() or labels[0] != IGNORE_INDEX):
            problem = "no token of the assistant could be labelled"
            raise BadRow("empty_answer", sample.where, problem, "Check the chat template")
        return ids, labels

    @_of_one_row
    def load_vision(self, sample: Sample, max_tiles: int | None) -> tuple[dict[str, Any], Sequence[Layout]]:
        """The family's vision tensors of a row, or cached `vision_features float[P, L, Dv]` for its pixels; how each picture is cut."""
        expected = self.layouts_of(sample, max_tiles)
        if not expected or self.vision is None:
            return {}, []
        if self.features is not None:
            features = self.features.load(sample, max_tiles)
            if self.shuffle_frames and sample.video:
                features = features[shuffled_order(sample.id, len(features))]
            return {"vision_features": features, **self.vision.beside_pixels(expected)}, expected
        if sample.video:
            load_all = load_video_levels if self.vision.reads_levels else load_video
            pictures: list[Any] = [*load_all(sample.video, self.num_frames, sample.where)]
            if self.shuffle_frames:
                pictures = [pictures[i] for i in shuffled_order(sample.id, len(pictures))]
        else:
            load_one = load_levels if self.vision.reads_levels else load_image
            pictures = [load_one(path, sample.where) for path in sample.images]
        if self.blank_images:
            pictures = [_grey(picture) for picture in pictures]
        if sample.video:
            tensors, layouts = self.vision.load_video(pictures, max_tiles, expected)
        else:
            tensors, layouts = self.vision.load_pixels(pictures, max_tiles, is_video=False)
        if list(layouts) != list(expected):
            raise BadRow(
                "changed_on_disk",
                sample.where,
                f"the pictures gave {layouts} tiles, but {list(expected)} when their sizes were read: a picture changed on disk",
                "Start again with the files left alone",
            )
        return tensors, layouts

    def _expand_pictures(
        self, ids: np.ndarray, labels: np.ndarray, pictures: Sequence[list[int]], sample: Sample
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each image token becomes the tokens of its picture, unlabelled."""
        places = np.flatnonzero(ids == self.image_id)
        if len(places) != len(pictures):
            problem = f"the text has {len(places)} image tokens for {len(pictures)} pictures"
            raise BadRow(
                "image_count", sample.where, problem, "Check the tokenizer: it must keep the image token whole"
            )
        out_ids, out_labels, start = [], [], 0
        for place, picture in zip(places.tolist(), pictures, strict=True):
            out_ids += [ids[start:place], np.asarray(picture, dtype=np.int64)]
            out_labels += [labels[start:place], np.full(len(picture), IGNORE_INDEX)]
            start = place + 1
        return np.concatenate([*out_ids, ids[start:]]), np.concatenate([*out_labels, labels[start:]])


def reserved_tokens(tokenizer: Any, template: str, vision: VisionAdapter | None) -> list[str]:
    """Special tokens that no text of a row may hold: those that begin or end a turn or a text, and those of pictures and videos.

    Others, such as <ref>, <box> and <|box_start|>, are targets like any word. So is a closing tag such as </img>: without what
    opens a picture it forges nothing.
    """
    # Not all_special_tokens: it leaves out what has no role of its own, such as <|im_start|>.
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    own = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    media = {token for token in special if _NAMED.search(token)}
    if vision is not None:
        own.add(vision.image_token)
        media |= special & set(tokenizer.convert_ids_to_tokens(sorted(set(vision.image_ids(vision.tiling.largest())))))
    media = {token for token in media if not token.startswith("</")}
    return sorted(media | {token for token in special if token in own or token in template} | own - {None})


def shuffled_order(row_id: str, count: int) -> list[int]:
    """The numbers from 0 to count - 1 in an order that depends on the row's id alone."""
    digest = hashlib.blake2b(row_id.encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).permutation(count).tolist()


def _frames(parts: tuple[str, ...], count: int) -> tuple[str, ...]:
    """`parts` with `count` pictures in the place of the video."""
    return tuple(new for part in parts for new in ([IMAGE] * count if part == VIDEO else [part]))


def _grey(picture: Any) -> Any:
    """A picture, of Pillow's or uint8[H, W, 3], without content."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        return np.full_like(picture, 128)
    return Image.new("RGB", picture.size, (128, 128, 128))


def too_long(where: str, length: int, limit: int) -> BadRow:
    way_out = "Raise --max_length, lower --max_tiles (Qwen-VL: --max_pixels) or --num_frames, or use --on_bad_row skip"
    return BadRow("too_long", where, f"the row has {length} tokens, more than --max_length {limit}", way_out)
