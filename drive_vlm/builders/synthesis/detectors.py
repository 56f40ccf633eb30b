"""Open-vocabulary detectors of transformers: pictures and labels in, boxes out, and words that are no label."""

import abc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drive_vlm.builders.synthesis.devices import device, open_model
from drive_vlm.builders.synthesis.labels import in_groups, letters
from drive_vlm.builders.synthesis.records import FoundBox
from drive_vlm.builders.synthesis.rle import encode_rle

if TYPE_CHECKING:
    from PIL.Image import Image

# More labels in one text run into each other: word pieces and merged names, IDEA-Research/GroundingDINO issues 63, 85, 354.
LARGEST_GROUP = 20


@dataclass
class Found:
    """What was found in a picture: boxes as the model gives them, and how often each text was no label of the list."""

    boxes: list[FoundBox] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)


Detect = Callable[[Sequence["Image"]], list[Found]]


@dataclass(frozen=True)
class Thresholds:
    """`box`: least score of a box; `text`: least score of a word for GroundingDINO; `mask`: of a pixel for SAM3. All in 0..1."""

    box: float
    text: float
    mask: float


def open_detector(model: str, labels: Sequence[str], group: int, thresholds: Thresholds, dtype: str) -> Detect:
    """The detector at `model`, a directory or a hub id. Raises ValueError for a model of another kind, and where it cannot be loaded."""
    import transformers as hf

    config = open_model(hf.AutoConfig, model)
    name = model.rstrip("/").rpartition("/")[2]
    if config.model_type == "sam3":
        network = open_model(hf.Sam3Model, model, dtype).to(device()).eval()
        return _Sam3(name, network, open_model(hf.Sam3Processor, model), labels, thresholds)
    if config.model_type not in ("grounding-dino", "mm-grounding-dino", "owlv2"):
        known = "grounding-dino, mm-grounding-dino, owlv2, sam3"
        raise ValueError(
            f"--model {model}: a {config.model_type} is not one of the detectors {known}. Give another model."
        )
    network = open_model(hf.AutoModelForZeroShotObjectDetection, model, dtype).to(device()).eval()
    processor = open_model(hf.AutoProcessor, model)
    if config.model_type == "owlv2":
        most = config.text_config.max_position_embeddings
        for label in labels:
            _short_enough([[label]], processor, most)
        return _Owlv2(name, network, processor, in_groups(labels, group), thresholds)
    groups = _short_enough(in_groups(labels, group), processor, config.max_text_len)
    return _GroundingDino(name, network, processor, groups, thresholds)


def _short_enough(groups: list[list[str]], processor: Any, most: int) -> list[list[str]]:
    """The groups, halved where their text is longer than the model reads: it would cut it without a word. Raises ValueError for one
    label that is too long."""
    done = []
    while groups:
        group, *groups = groups
        if len(processor.tokenizer(". ".join(group) + ".")["input_ids"]) <= most:
            done.append(group)
        elif len(group) == 1:
            raise ValueError(f"--labels: {group[0][:80]!r} is longer than the {most} tokens that the detector reads.")
        else:
            groups = [group[: len(group) // 2], group[len(group) // 2 :], *groups]
    return done


class _Grouped(abc.ABC):
    """A detector that is asked for one group of labels after the other."""

    def __init__(
        self, name: str, network: Any, processor: Any, groups: list[list[str]], thresholds: Thresholds
    ) -> None:
        self.name, self.network, self.processor, self.groups = name, network, processor, groups
        self.thresholds = thresholds

    def __call__(self, pictures: Sequence["Image"]) -> list[Found]:
        found = [Found() for _ in pictures]
        for group in self.groups:
            for item, result in zip(found, self.ask(pictures, group), strict=True):
                labels = {letters(label): label for label in group}
                boxes, scores = result["boxes"].tolist(), result["scores"].tolist()
                # Of no box at all, GroundingDINO's processor makes one empty text.
                texts = result["text_labels"] if boxes else []
                for box, score, text in zip(boxes, scores, texts, strict=True):
                    label = labels.get(letters(text))
                    if label is None:
                        item.unknown[" ".join(text.split())] += 1
                    else:
                        item.boxes.append(FoundBox(_ordered(box), label, round(score, 4), self.name))
        return found

    @abc.abstractmethod
    def ask(self, pictures: Sequence["Image"], group: list[str]) -> list[dict[str, Any]]:
        """{"boxes" float[N, 4] in pixels, "scores" float[N], "text_labels": N texts} of each picture."""

    def forward(self, pictures: Sequence["Image"], text: list[list[str]], **options: Any) -> tuple[Any, Any]:
        """(outputs, inputs) of one pass over the pictures."""
        import torch

        inputs = self.processor(images=list(pictures), text=text, return_tensors="pt", **options).to(device())
        inputs["pixel_values"] = inputs["pixel_values"].to(self.network.dtype)
        with torch.inference_mode():
            return self.network(**inputs), inputs


class _GroundingDino(_Grouped):
    """GroundingDINO and MM-GroundingDINO: the group is one text, and a box's label is made of the words that it is alike."""

    def ask(self, pictures: Sequence["Image"], group: list[str]) -> list[dict[str, Any]]:
        outputs, inputs = self.forward(pictures, [group] * len(pictures))
        return self.processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.thresholds.box,
            text_threshold=self.thresholds.text,
            target_sizes=[(picture.height, picture.width) for picture in pictures],
        )


class _Owlv2(_Grouped):
    """OWLv2: each label is a query of its own; a picture is padded to a square, and boxes come back in its own pixels."""

    def ask(self, pictures: Sequence["Image"], group: list[str]) -> list[dict[str, Any]]:
        most = self.network.config.text_config.max_position_embeddings
        outputs, _ = self.forward(pictures, [group] * len(pictures), max_length=most, truncation=True)
        return self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=self.thresholds.box,
            target_sizes=[(picture.height, picture.width) for picture in pictures],
            text_labels=[group] * len(pictures),
        )


class _Sam3:
    """SAM3: one pass of the decoder for each label, over features of the picture that are computed once; boxes come with masks."""

    def __init__(self, name: str, network: Any, processor: Any, labels: Sequence[str], thresholds: Thresholds) -> None:
        self.name, self.network, self.processor = name, network, processor
        self.labels, self.thresholds = labels, thresholds

    def __call__(self, pictures: Sequence["Image"]) -> list[Found]:
        return [self._look(picture) for picture in pictures]

    def _look(self, picture: "Image") -> Found:
        import torch

        found = Found()
        pixels = self.processor(images=picture, return_tensors="pt").to(device())["pixel_values"].to(self.network.dtype)
        with torch.inference_mode():
            features = self.network.get_vision_features(pixel_values=pixels)
            for label in self.labels:
                text = self.processor(text=label, return_tensors="pt", original_sizes=[[picture.height, picture.width]])
                words = {name: text[name].to(device()) for name in ("input_ids", "attention_mask")}
                result = self.processor.post_process_instance_segmentation(
                    self.network(vision_embeds=features, **words),
                    threshold=self.thresholds.box,
                    mask_threshold=self.thresholds.mask,
                    target_sizes=[(picture.height, picture.width)],
                )[0]
                rows = zip(result["boxes"].tolist(), result["scores"].tolist(), result["masks"].bool(), strict=True)
                for box, score, mask in rows:
                    rle = encode_rle(mask.cpu().numpy())
                    found.boxes.append(FoundBox(_ordered(box), label, round(score, 4), self.name, rle))
        return found


def _ordered(box: Sequence[float]) -> list[float]:
    """Corners in order: a model's box may have a negative side."""
    x1, y1, x2, y2 = box
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
