"""From a family's spec to its processor and its model: with weights, or on the meta device from a config alone."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import ROW_ATTENTION, ModelConfig
from drive_vlm.models.family import Family, FamilyModel, FamilySpec, ProcessorParts
from drive_vlm.models.quantize import quantization_arguments
from drive_vlm.models.vision import Tiling
from drive_vlm.store.forms import part, read_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

# Adds modules to a family's model, at its top, under names of their own.
Extend = Callable[[Family], None]
_COPY = "Copy the file again from where the model came from."
_SMALL_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
# Published configs that name no model_type, by the class that they name.
_UNNAMED = {"CogVLMForCausalLM": "cogvlm2"}
ATTENTION = {"sdpa": ROW_ATTENTION, "flash": "flash_attention_2", "flex": "flex_attention", "eager": "eager"}


def model_type(path: str, trust_remote_code: bool = False) -> str:
    """The `model_type` of a local directory or hub id. Raises ValueError when there is no readable config."""
    config = Path(path) / "config.json"
    if config.is_file():
        # What transformers reads later, and says of a damaged one neither its name nor a way out.
        for other in _SMALL_FILES:
            if (Path(path) / other).is_file():
                read_object(Path(path) / other, _COPY)
        return part(with_model_type(read_object(config, _COPY)), "model_type", str, config, _COPY)
    if Path(path).is_dir():
        raise ValueError(
            f"{path}: no config.json and no adapter_config.json. Give a directory written by save_pretrained, or a hub id."
        )
    from transformers import AutoConfig

    try:
        if kind := stored_config(path).get("model_type"):
            return kind
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).model_type
    except OSError as error:
        raise ValueError(
            f"{path}: neither a local directory nor reachable on the hub. Download it and give the directory."
        ) from error


@contextlib.contextmanager
def usable(path: str, files: str, way_out: str = _COPY) -> Iterator[None]:
    """Whatever a library raises from damaged `files` of the model in `path` becomes a ValueError that names them."""
    try:
        yield
    # These say what is wrong themselves: a device without memory, a file or a package that is not there, a number.
    except (ValueError, RuntimeError, ImportError):
        raise
    # The tokenizers library raises plain Exceptions, and transformers an OSError without a number for a part that processor_config.json lacks.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        shown = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: {files} cannot be used ({type(error).__name__}: {shown}). {way_out}") from error


def read_processor(spec: FamilySpec, path: str, config: ModelConfig) -> ProcessorParts:
    """The processor and what the data path takes from it; no weights are read.

    Raises ValueError for a language model without a chat template, and for a `--max_tiles` that the family cannot keep.
    """
    from transformers import AutoProcessor, AutoTokenizer

    spec.register()
    if spec.tiling is None or spec.adapter is None:
        with usable(path, "tokenizer.json or tokenizer_config.json"):
            tokenizer = AutoTokenizer.from_pretrained(path)
        if not tokenizer.chat_template:
            raise ValueError(f"{path}: the tokenizer has no chat template. Take the instruct variant of the model.")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return ProcessorParts(tokenizer, tokenizer, tokenizer.chat_template, None)
    with usable(path, "tokenizer.json, tokenizer_config.json or processor_config.json"):
        processor: Any = (spec.processor or AutoProcessor.from_pretrained)(path)
        tiling = spec.tiling.read(processor.to_dict(), config.max_tiles)
        if config.min_pixels or config.max_pixels:
            tiling.limit_pixels(config.min_pixels, config.max_pixels)
        vision = spec.adapter(processor, tiling)
    if processor.tokenizer.pad_token_id is None:
        raise ValueError(f"{path}: tokenizer_config.json names no pad_token that tokenizer.json knows. {_COPY}")
    template = processor.chat_template or processor.tokenizer.chat_template
    return ProcessorParts(processor, processor.tokenizer, template, vision)


def read_model(spec: FamilySpec, path: str, config: ModelConfig, dtype: "torch.dtype | str") -> Family:
    """Processor and model with its weights. The head stays untied where the checkpoint has a head of its own."""
    stored = stored_config(path)
    spec.refuse(stored)
    if spec.adapter:
        # The published Qwen2.5-VL, MiniCPM-V and CogVLM2 have their text's numbers at the top.
        flat = (
            spec.name in ("qwen2_5_vl", "minicpmv", "cogvlm2")
            and "hidden_size" in stored
            and "text_config" not in stored
        )
        for name in ("vision_config",) if flat else ("text_config", "vision_config"):
            # transformers would take a part that is missing for the default one, of billions of weights.
            if not part(stored, name, dict, Path(path) / "config.json", _COPY):
                raise ValueError(f"{Path(path) / 'config.json'}: {name} is empty. {_COPY}")
    parts = read_processor(spec, path, config)
    with usable(path, "config.json"):
        hf_config = _config(spec, stored, parts.vision.tiling if parts.vision else None)
    if spec.own_head:
        own_head = has_own_head(path)
        if own_head is None:
            raise ValueError(
                f"{path}: no model.safetensors. Weights are loaded from safetensors only: convert the checkpoint with save_pretrained."
            )
        _untie(hf_config, own_head)
    outside = [path for name, paths in spec.parts.items() if name != "language_model" for path in paths]
    with usable(path, "config.json"):
        loaded: Any = _auto_class(spec).from_pretrained(
            path,
            config=hf_config,
            dtype=dtype,
            attn_implementation=ATTENTION[config.attn_implementation],
            output_loading_info=True,
            **quantization_arguments(config, outside),
        )
    model, info = loaded
    # A tied head is no tensor of its own.
    if missing := sorted(info["missing_keys"] - model.all_tied_weights_keys.keys()):
        # transformers would begin with random numbers in their place.
        raise ValueError(
            f"{path}: the checkpoint lacks {len(missing)} tensors of the model, such as {missing[0]}. {_COPY}"
        )
    spec.settle(model)
    if parts.vision is not None:
        from drive_vlm.models.pixels import normalise_on_device

        normalise_on_device(model.model, parts.vision.decimals)
    tower_tokens, tokens = spec.tile_tokens(hf_config.to_dict())
    return Family(spec=spec, model=model, tokens_per_tile=tower_tokens, projector_tokens=tokens, **vars(parts))


def extend_model(family: Family, extend: Extend, source: str) -> None:
    """Let `extend` add modules to the model, and give them the weights that the directory `source` holds of them, if any.

    transformers leaves weights out that its class has no place for, so they are read from the files here. Raises ValueError
    for a module that would not be found again by its name, and for weights that do not fit.
    """
    model = family.model
    before = [name for name, _ in model.named_modules()]
    top = {name for name, _ in model.named_children()}
    extend(family)
    new = [name for name, _ in model.named_modules() if name not in before]
    family.added = tuple(name for name, _ in model.named_children() if name not in top)
    if nested := [name for name in new if name.split(".")[0] not in family.added]:
        raise ValueError(
            f"a stage added {nested[0]} inside {nested[0].split('.')[0]}. Add it to the model itself: its name is also that on disk."
        )
    for name in family.added:
        # peft finds modules_to_save by the ends of names.
        if others := [other for other in before if other.endswith(name)]:
            raise ValueError(f"a stage added {name!r}, which is also the end of {others[0]}. Give it another name.")
        module = model.get_submodule(name).to(model.dtype)
        shapes = {f"{name}.{key}": tensor.shape for key, tensor in module.state_dict().items()}
        found = stored_weights(source, shapes.keys())
        wrong = [key for key, shape in shapes.items() if key not in found or found[key].shape != shape]
        if found and wrong:
            raise ValueError(
                f"{source}: its weights of {name} do not fit, such as {wrong[0]}. It was saved by another version of the stage: give another --model or --output_dir."
            )
        if found:
            module.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in found.items()})


def stored_weights(directory: str, names: Set[str]) -> dict[str, "torch.Tensor"]:
    """Those of the tensors `names` that lie in the safetensors files of a directory, by their names on disk."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in names & set(weights.keys())}
    return found


def build_on_meta(spec: FamilySpec, stored: Mapping[str, Any], config: ModelConfig, own_head: bool) -> FamilyModel:
    """The real classes for the config.json `stored`, on torch's meta device: names and shapes without a byte of weights."""
    import torch

    spec.refuse(stored)
    hf_config = _config(spec, dict(stored), None)
    _untie(hf_config, own_head)
    with torch.device("meta"):
        model = _auto_class(spec).from_config(
            hf_config, dtype=torch.float32, attn_implementation=ATTENTION[config.attn_implementation]
        )
    spec.settle(model)
    return FamilyModel(spec, model, *spec.tile_tokens(hf_config.to_dict()))


def _auto_class(spec: FamilySpec) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from drive_vlm.models.row_attention import register

    register()

    return AutoModelForImageTextToText if spec.adapter else AutoModelForCausalLM


def stored_config(path: str) -> dict[str, Any]:
    """The config.json of a directory or hub id."""
    from transformers import PreTrainedConfig

    return with_model_type(PreTrainedConfig.get_config_dict(path)[0])


def with_model_type(stored: dict[str, Any]) -> dict[str, Any]:
    """`stored` with the model_type that its class says, where it names none."""
    found = next((_UNNAMED[name] for name in stored.get("architectures") or () if name in _UNNAMED), None)
    return stored if "model_type" in stored or found is None else {**stored, "model_type": found}


def _config(spec: FamilySpec, stored: dict[str, Any], tiling: Tiling | None) -> "PreTrainedConfig":
    """The config object of `stored`, put right by the family."""
    from transformers import CONFIG_MAPPING

    spec.register()
    hf_config = CONFIG_MAPPING[stored["model_type"]].from_dict(stored)
    spec.configure(hf_config, stored, tiling)
    return hf_config


def _untie(hf_config: Any, own_head: bool) -> None:
    """Keep a checkpoint's own head.

    Several configs tie by default: InternVL3-1B has its own lm_head, which tying would throw away silently.
    """
    if own_head:
        hf_config.tie_word_embeddings = hf_config.get_text_config().tie_word_embeddings = False


def has_own_head(path: str) -> bool | None:
    """Whether the checkpoint stores an lm_head tensor, from the safetensors index or header; None without such a file."""
    from safetensors import SafetensorError, safe_open
    from transformers.utils import cached_file

    def find(name: str) -> str | None:
        local = Path(path) / name
        if Path(path).is_dir():
            return str(local) if local.is_file() else None
        return cached_file(path, name, _raise_exceptions_for_missing_entries=False)

    if (index := find("model.safetensors.index.json")) is not None:
        names = list(part(read_object(Path(index), _COPY), "weight_map", dict, Path(index), _COPY))
    elif (weights := find("model.safetensors")) is not None:
        try:
            # "pt" would import torch, which a plan does without.
            with safe_open(weights, framework="np") as file:
                names = list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{weights}: damaged ({error}). {_COPY}") from error
    else:
        return None
    return any(name.endswith("lm_head.weight") for name in names)
