"""Configuration of MiniCPM-V in the published layout: the language model's numbers at the top of config.json."""

import dataclasses
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig

from drive_vlm.models.minicpmv.versions import VERSIONS, version_of

# The tower of both published models, where a config.json leaves a number out.
_TOWER = {
    "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
    "patch_size": 14, "model_type": "idefics2",
}  # fmt: skip
_COMMON = {field.name for field in dataclasses.fields(PreTrainedConfig)}


class MiniCPMVConfig(PreTrainedConfig):
    """Sizes of tower, resampler and language model.

    Args:
        vision_config: the tower, with the published `model_type` (idefics2 in 2.5, siglip in 2.6).
        text_config: config of the language model; without it, it is made of the numbers at the top.
        version: "2.5" or "2.6"; without it the tower's model_type says which.
        query_num: tokens of the language model for one slice.
        image_token_id: the token that stands `query_num` times for a slice; the tokenizer says it where this does not.
        initializer_range: standard deviation of new weights.

    Raises ValueError for other models of the same model_type.
    """

    model_type = "minicpmv"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": Idefics2VisionConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    version: Any = None
    query_num: int | None = None
    image_token_id: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """PreTrainedConfig makes a dataclass of this class, and gives it here what is no field."""
        # They name code that is not loaded, and is not there in a saved copy.
        kwargs.pop("auto_map", None)
        made = isinstance(self.vision_config, PreTrainedConfig)
        if made:
            found = VERSIONS[str(self.version or "2.5")]
        else:
            vision = self.vision_config or ({} if kwargs else _TOWER)
            found = version_of({"version": self.version, "vision_config": vision, **kwargs})
        self.version = found.name
        if not made:
            numbers = {**_TOWER, **(self.vision_config or {})}
            del numbers["model_type"]
            self.vision_config = Idefics2VisionConfig(**numbers)
        if not isinstance(self.text_config, PreTrainedConfig):
            names = text_names(found.text)
            flat = {name: kwargs.pop(name) for name in names if name in kwargs}
            flat |= {"tie_word_embeddings": self.tie_word_embeddings, "initializer_range": self.initializer_range}
            words = flat | dict(self.text_config or {})
            words.pop("model_type", None)
            self.text_config = AutoConfig.for_model(found.text, **words)
        self.query_num = self.query_num or found.queries
        if self.image_token_id is None:
            self.image_token_id = found.image_token_id
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The published layout: other programs find the language model's numbers at the top."""
        out = super().to_dict()
        text = out.pop("text_config")
        names = text_names(text["model_type"])
        out |= {name: value for name, value in text.items() if name in names}
        # Both ways to say it: readers of before transformers 5 know this one.
        out["rope_theta"] = text["rope_parameters"]["rope_theta"]
        out["vision_config"]["model_type"] = VERSIONS[self.version].tower
        # Servers choose their class by the published name.
        out["architectures"] = ["MiniCPMV"]
        return out

    def to_diff_dict(self) -> dict[str, Any]:
        """All of it: transformers would leave out what is the default of another class."""
        return self.to_dict()


def text_names(kind: str) -> set[str]:
    """Names of the numbers that the config of a language model has of its own."""
    text = type(AutoConfig.for_model(kind))
    return {field.name for field in dataclasses.fields(text)} - _COMMON | {"rope_theta", "rope_scaling"}
