"""Pictures into slices, and the processor with its chat template; file names and settings are the published ones."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import make_flat_list_of_images

from drive_vlm.models.host_copies import to_device
from drive_vlm.models.minicpmv.tiling import WHOLE, Grid, grid_of, sizes_of
from drive_vlm.models.minicpmv.versions import VERSIONS, Version
from drive_vlm.models.pixels import Normalisation, planes
from drive_vlm.models.processing import PictureProcessor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# What stands for a slice's features: byte-level BPE never writes it.
IMAGE_TOKEN = "<unk>"
TAGS = ("<image>", "</image>", "<slice>", "</slice>")
ID_TAGS = ("<image_id>", "</image_id>")

# A picture is its image token and a newline; the words of a turn without blanks around them.
_PARTS = (
    "{% set said = namespace(text='') %}{% if message['content'] is string %}{% set said.text = message['content'] %}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% set said.text = said.text + PICTURE %}"
    "{% elif part['type'] == 'text' %}{% set said.text = said.text + part['text'] %}{% endif %}{% endfor %}{% endif %}"
)
_LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    + _PARTS.replace("PICTURE", "'<unk>\n'")
    + "{{ said.text | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Qwen2's own template begins with this system turn where a row has none; pictures are numbered through the row.
_CHATML = (
    "{% set seen = namespace(pictures=0) %}{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    + _PARTS.replace(
        "PICTURE",
        "'<image_id>' ~ seen.pictures ~ '</image_id><unk>\n' %}{% set seen.pictures = seen.pictures + 1",
    )
    + "{{ said.text + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"2.5": _LLAMA3, "2.6": _CHATML}
_STOPS = {"2.5": ("<|end_of_text|>", "<|eot_id|>"), "2.6": ("<|im_end|>", "<|endoftext|>")}
# The published 2.5 pads with the word "!", which would make a special token of it, and names no end of a turn.
_NAMED = {
    "2.5": {"pad_token": "<|end_of_text|>", "eos_token": "<|eot_id|>"},
    "2.6": {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
}


class MiniCPMVImageProcessor(ImageProcessingMixin):
    """A picture -> its slices as the tower takes them: the whole picture first, then the grid row by row."""

    model_input_names = ("pixel_values", "tgt_sizes")

    def __init__(
        self,
        max_slice_nums: int = 9,
        scale_resolution: int = 448,
        patch_size: int = 14,
        image_feature_size: int = 96,
        norm_mean: Sequence[float] = (0.5, 0.5, 0.5),
        norm_std: Sequence[float] = (0.5, 0.5, 0.5),
        version: str | float = "2.5",
        slice_mode: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        self.max_slice_nums = max_slice_nums if slice_mode else 1
        self.scale_resolution, self.patch_size, self.image_feature_size = (
            scale_resolution,
            patch_size,
            image_feature_size,
        )
        self.norm_mean, self.norm_std, self.version = list(norm_mean), list(norm_std), str(version)

    def cells(self, image: "Picture", most: int | None = None) -> tuple[list["Picture"], Grid]:
        """The slices of an RGB picture as pictures, and how it is cut; at most `most` next to the whole."""
        side, most = self.scale_resolution, self.max_slice_nums if most is None else most
        columns, rows = grid_of(*image.size, side, most)
        whole, *cell = sizes_of(*image.size, side, self.patch_size, (columns, rows))
        cells = [image.resize(whole, Image.Resampling.BICUBIC)]
        if not cell:
            return cells, WHOLE
        width, height = cell[0]
        refined = image.resize((width * columns, height * rows), Image.Resampling.BICUBIC)
        corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
        cells += [refined.crop((x, y, x + width, y + height)) for x, y in corners]
        return cells, (len(cells), rows, columns)

    def patches(self, cell: "Picture") -> tuple[torch.Tensor, tuple[int, int]]:
        """(uint8[3, p, p * L]: the patches of an RGB slice next to each other, row after row; rows and columns of patches)."""
        return patchify(planes(cell), self.patch_size)

    def normalised(self, pixels: torch.Tensor, tgt_sizes: torch.Tensor) -> torch.Tensor:
        """`pixel_values uint8[P, 3, p, p * L]` as float32 of the same shape; zeros where a slice has no patches (`tgt_sizes
        int64[P, 2]`: rows and columns of each one's)."""
        columns = torch.arange(pixels.shape[-1], device=pixels.device)
        # The host keeps the sizes (VisionAdapter.read_by_host).
        behind = columns >= to_device(tgt_sizes.prod(1) * pixels.shape[-2], pixels.device)[:, None]
        decimals = _normalisation(tuple(self.norm_mean), tuple(self.norm_std))(pixels)
        return decimals.masked_fill_(behind[:, None, None], 0.0)

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        """`pixel_values float32[P, 3, p, p * L]` of the slices of all pictures, `tgt_sizes int64[P, 2]`."""
        pictures: list[Any] = list(make_flat_list_of_images(images))  # type: ignore[arg-type]
        cells = [cell for image in pictures for cell in self.cells(image.convert("RGB"))[0]]
        row = join_slices([self.patches(cell) for cell in cells])
        return BatchFeature({**row, "pixel_values": self.normalised(row["pixel_values"], row["tgt_sizes"])})


@functools.lru_cache(maxsize=8)
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalisation:
    # Not an attribute of the processor: all of these are saved with it.
    return Normalisation(mean, std, 1 / 255, fused=False)


def patchify(pixels: torch.Tensor, patch: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """[3, H, W] -> ([3, patch, patch * L], rows and columns of patches)."""
    channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    grid = pixels.reshape(channels, rows, patch, columns, patch)
    return grid.permute(0, 2, 1, 3, 4).reshape(channels, patch, -1).contiguous(), (rows, columns)


def join_slices(slices: Sequence[tuple[torch.Tensor, tuple[int, int]]]) -> dict[str, torch.Tensor]:
    """`pixel_values [P, 3, p, p * L]`, zeros behind the shorter ones, and `tgt_sizes int64[P, 2]`."""
    pixels = torch.cat(padded([tensor[None] for tensor, _ in slices]))
    return {"pixel_values": pixels, "tgt_sizes": torch.tensor([size for _, size in slices], dtype=torch.int64)}


def padded(pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors [P_i, ..., L_i] as [P_i, ..., L], zeros behind the shorter ones."""
    longest = max(tensor.shape[-1] for tensor in pixels)
    return [torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1])) for tensor in pixels]


def slice_text(version: Version, layout: Grid, queries: int) -> str:
    """The text of a picture that is cut like this."""
    begin, end, first, last = TAGS
    features = IMAGE_TOKEN * queries
    whole, (_, rows, columns) = begin + features + end, layout
    if not rows:
        return whole
    if version.name == "2.5":
        return whole + first + "\n".join([whole * columns] * rows) + last
    return whole + "\n".join([(first + features + last) * columns] * rows)


class MiniCPMVProcessor(PictureProcessor):
    """Image processor, tokenizer and chat template. A published directory gets the template that also serves training."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        special_ids: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """`special_ids` is for the reader of processor_config.json; it is made of the tokenizer."""
        version = VERSIONS[image_processor.version]
        # The published template takes no pictures apart from the text, and writes the assistant's header after its answer.
        template = chat_template if chat_template and "part['type']" in chat_template else TEMPLATES[version.name]
        super().__init__(image_processor, tokenizer, template, **kwargs)
        tokenizer.chat_template = template
        self.version, self.image_token = version, IMAGE_TOKEN
        tags = TAGS + (ID_TAGS if version.name == "2.6" else ())
        missing = [token for token in (IMAGE_TOKEN, *tags) if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"the tokenizer has no {missing[0]}, which MiniCPM-V {version.name} writes around pictures."
            )
        to_ids = tokenizer.convert_tokens_to_ids
        self.image_token_id = to_ids(IMAGE_TOKEN)
        stops = [token for token in _STOPS[version.name] if token in tokenizer.get_vocab()]
        self.special_ids = {
            "image": self.image_token_id,
            "pictures": to_ids([IMAGE_TOKEN, *tags]),
            "stops": to_ids(stops),
        }

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """By the classes of this file: a published directory names classes of the hub's own code."""
        path = pretrained_model_name_or_path
        kwargs.pop("trust_remote_code", None)
        kept = (processor_dict or {}).get("image_processor")
        images = MiniCPMVImageProcessor(**kept) if kept else MiniCPMVImageProcessor.from_pretrained(path, **kwargs)
        named: dict[str, Any] = {**_NAMED[images.version], **kwargs}
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **named)
        return [images, tokenizer]

    def text_of(self, layout: Grid) -> str:
        return slice_text(self.version, layout, self.image_processor.image_feature_size)

    def picture_texts(self, pictures: Sequence["Picture"]) -> list[str]:
        return [self.text_of(self._cut(picture)) for picture in pictures]

    def _cut(self, picture: "Picture") -> Grid:
        numbers = self.image_processor
        columns, rows = grid_of(*picture.size, numbers.scale_resolution, numbers.max_slice_nums)
        return (rows * columns + 1, rows, columns) if rows else WHOLE
