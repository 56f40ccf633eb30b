"""What the rest of the project knows of a model: its processor, picture side, named parts and picture tokens."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from drive_vlm.models.vision import Tiling, VisionAdapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


def llm_linears(body: str) -> str:
    """Regular expression of the linear layers of a Llama-like language model in the module `body`; "" for all of a model."""
    inside = rf"{body}\..*" if body else ""
    return rf".*{inside}\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def nothing(*_: Any) -> None:
    """The default of a family's hooks."""


@dataclasses.dataclass(frozen=True)
class CachedModule:
    """What a feature cache holds the output of, where that is more than the last layer of the vision tower.

    Attributes:
        path: the module. Every part that lies in it is frozen, and leaves the model with it.
        features: (the model's body, vision tensors) -> `float[P, L, Dv]` of their P tiles.
        stand_in: the module -> what takes its place, and is given the features as `pixel_values`.
        vectors: config (the whole config.json as a dict) -> features of a tile, in widths of the language model.
    """

    path: str
    features: Callable[[Any, Mapping[str, "torch.Tensor"]], "torch.Tensor"]
    stand_in: Callable[[Any], Any]
    vectors: Callable[[Mapping[str, Any]], int]


@dataclasses.dataclass(frozen=True)
class FamilySpec:
    """A family as its file declares it (`FAMILY`); reading it loads neither torch nor transformers.

    Attributes:
        name: of the family, as caches and messages show it.
        parts: part name -> module path prefixes, e.g. {"projector": ("model.multi_modal_projector",)}.
        lora_targets: regular expression of the linear layers that `--lora_rank` adapts.
        tile_tokens: config (the whole config.json as a dict) -> (tokens of the vision tower for one tile, what the
            projector makes of them); both for the FLOPs count.
        tiling, adapter: the family's two classes of vision.py; None for a plain language model.
        own_head: whether the language model's head is untied where the checkpoint stores an lm_head of its own.
        register: makes the family's own classes known to transformers; called before a config is read.
        refuse: (config.json): raises ValueError for another model of the same model_type, before anything of it is read.
        configure: (config, its config.json, tiling or None): what from_pretrained would get wrong.
        settle: what a model needs once it exists, e.g. to freeze weights that no gradient reaches.
        processor: opens the processor of a path, where AutoProcessor cannot.
        idle: regular expression of the language model's weights that a token does not pass (the other experts), for the FLOPs.
        cached: what a feature cache holds; None for the last layer of the vision tower.
        tiny: "module:function" that builds the family's tiny random twin (models/tiny); None without one.
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]
    lora_targets: str
    tile_tokens: Callable[[Mapping[str, Any]], tuple[int, int]] = lambda config: (0, 0)
    tiling: type[Tiling] | None = None
    adapter: type[VisionAdapter] | None = None
    own_head: bool = True
    register: Callable[[], None] = nothing
    refuse: Callable[[Mapping[str, Any]], object] = nothing
    configure: Callable[["PreTrainedConfig", Mapping[str, Any], Tiling | None], None] = nothing
    settle: Callable[["PreTrainedModel"], None] = nothing
    processor: Callable[[str], "ProcessorMixin"] | None = None
    idle: str | None = None
    cached: CachedModule | None = None
    tiny: str | None = None

    @property
    def cached_parts(self) -> tuple[str, ...]:
        """The parts that a feature cache stands for."""
        if self.cached is None:
            return ("vision_tower",)
        inside = f"{self.cached.path}."
        return tuple(part for part, paths in self.parts.items() if all(path.startswith(inside) for path in paths))


@dataclasses.dataclass
class ProcessorParts:
    """What the data path needs of a model, loaded without its weights.

    Attributes:
        processor: the model's processor; saved with every checkpoint. A plain language model has its tokenizer here.
        tokenizer: the processor's fast tokenizer.
        template: its Jinja chat template.
        vision: picture side for the data path; None for a plain language model.
    """

    processor: "ProcessorMixin | PreTrainedTokenizerBase"
    tokenizer: "PreTrainedTokenizerBase"
    template: str
    vision: VisionAdapter | None


@dataclasses.dataclass
class FamilyModel:
    """A model and what its family says of it: enough to freeze, to adapt and to count.

    Attributes:
        spec: the family.
        model: the transformers model, perhaps wrapped by peft, perhaps on the meta device.
        tokens_per_tile: vision tower tokens for one tile, and
        projector_tokens: what the projector makes of them (both for the FLOPs count).
        added: modules that a stage has added to the model (loading.extend_model); each is a part by its own name.
    """

    spec: FamilySpec
    # Any: modules of a family's own names are reached through it, and peft wraps it.
    model: Any
    tokens_per_tile: int
    projector_tokens: int
    added: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        return {**self.spec.parts, **{name: (name,) for name in self.added}}

    @property
    def lora_targets(self) -> str:
        return self.spec.lora_targets

    @property
    def base(self) -> Any:
        """The transformers model itself, without peft around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


@dataclasses.dataclass
class Family(FamilyModel, ProcessorParts):
    """A loaded model with its data side."""
