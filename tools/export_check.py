"""Check that a directory with a model is complete and reads back: tensors by name and shape, bytes, logits; and who else reads it.

1. The model is loaded, saved again into a scratch folder, and the tensors of both are compared by name, shape and byte.
2. The copy is loaded, and the logits of one question with a picture are compared with those of the model.
3. --published names a published directory, or its model.safetensors.index.json: names (of a directory shapes too) must be the same.
4. `config.json` is compared with what servers look for. Which server reads which class is known from their sources, no server is started.

For directories that training, `merge` or a round wrote. An adapter is merged first (python -m drive_vlm merge).
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, ModelConfig, run_tool

if TYPE_CHECKING:
    import torch

EXAMPLES = """
python tools/export_check.py --model runs/spin_minicpm_v_8b/round-5/model
python tools/export_check.py --model runs/sft --published models/MiniCPM-Llama3-V-2_5 --json export.json
"""
# Largest difference of a logit: nothing but the classes that computed it differs.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Server:
    """A server that has a class for a model.

    Attributes:
        architecture: what it looks for in "architectures" of config.json.
        needs: what it needs next to what we save.
    """

    name: str
    architecture: str
    needs: str


_HUB_CODE = "the hub repository's *.py and its auto_map in config.json (--trust-remote-code): it reads configuration and pictures through them"
_NOTHING = "nothing else"
# Family -> servers with a class for it, by their sources of 2025 and 2026.
SERVERS: dict[str, tuple[Server, ...]] = {
    "minicpmv": (Server("vLLM", "MiniCPMV", _HUB_CODE), Server("lmdeploy", "MiniCPMV", _HUB_CODE)),
    "cogvlm2": (Server("lmdeploy", "CogVLMForCausalLM", _HUB_CODE),),
    "internvl": (Server("vLLM", "InternVLForConditionalGeneration", _NOTHING),),
    "llava_next": (Server("vLLM", "LlavaNextForConditionalGeneration", _NOTHING),),
    "qwen2_5_vl": (Server("vLLM", "Qwen2_5_VLForConditionalGeneration", _NOTHING),),
    "qwen3_vl": (Server("vLLM", "Qwen3VLForConditionalGeneration", _NOTHING),),
}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/export_check.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="directory with a whole model")
    add(
        "--published",
        type=Path,
        help="published directory, or its model.safetensors.index.json, with the names to meet",
    )
    add("--work", type=Path, help="folder for the copy, which takes as much disk as the model (default: the system's)")
    add("--json", help="write every number to this file")
    return parser


def tensors_of(path: Path) -> dict[str, tuple[int, ...] | None]:
    """{name: shape} of the safetensors files of a directory; of an index file {name: None}. Raises ValueError without any."""
    from safetensors import SafetensorError, safe_open

    if path.is_file():
        return dict.fromkeys(json.loads(path.read_text())["weight_map"])
    found: dict[str, tuple[int, ...] | None] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as stored:
                found |= {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged ({error}). Copy it again.") from error
    if not found:
        raise ValueError(
            f"{path}: no *.safetensors in it. Give a directory with a whole model; merge an adapter first."
        )
    return found


def same_tensors(ours: Path, others: Path, what: str) -> int:
    """How many tensors two directories have. Raises ValueError with the first names that differ, in themselves or in shape."""
    first, second = tensors_of(ours), tensors_of(others)
    for extra, where in ((first.keys() - second.keys(), ours), (second.keys() - first.keys(), others)):
        if extra:
            raise ValueError(
                f"{len(extra)} tensors are in {where} only, such as {min(extra)}: {what}. Was it saved by another version, or cut off?"
            )
    for name, shape in second.items():
        if shape is not None and first[name] != shape:
            raise ValueError(f"{name} has the shape {first[name]} in {ours}, and {shape} in {others}: {what}.")
    return len(first)


def same_bytes(ours: Path, copy: Path) -> None:
    """Raises ValueError for a tensor whose bytes changed on the way through the model."""
    for name, value in all_tensors(ours).items():
        other = all_tensors(copy)[name]
        if value.dtype != other.dtype or not bool((value == other).all() | (value.isnan() & other.isnan()).all()):
            raise ValueError(
                f"{name}: saved again it has other numbers, or another dtype ({value.dtype}, {other.dtype})"
            )


def all_tensors(path: Path) -> "dict[str, torch.Tensor]":
    from safetensors.torch import load_file

    return {name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()}


def run(args: Any) -> dict[str, Any]:
    """Load, save, load again, compare; returns what --json holds."""
    import torch

    from drive_vlm.merge import logits_of, probe_of
    from drive_vlm.models import load_family
    from drive_vlm.store.cache import read_json

    if (args.model / "adapter_config.json").is_file():
        raise ValueError(
            f"--model {args.model}: an adapter. Merge it first: python -m drive_vlm merge --checkpoint {args.model} --out DIR"
        )
    tensors_of(args.model)
    result: dict[str, Any] = {"model": str(args.model)}
    if args.published:
        result["published"] = same_tensors(args.model, args.published, "the published names are others")
    stored = getattr(torch, read_json(args.model / "config.json").get("dtype") or "float32")
    family = load_family(ModelConfig(model=str(args.model)), stored)
    probe = probe_of(family)
    with tempfile.TemporaryDirectory(dir=args.work, prefix="export_check_") as folder:
        copy = Path(folder) / "copy"
        family.model.save_pretrained(copy)
        family.processor.save_pretrained(copy)
        result["tensors"] = same_tensors(args.model, copy, "saved again it has other tensors")
        same_bytes(args.model, copy)
        family.model.float()
        expected = logits_of(family.model, probe)
        result["parameters"] = sum(weight.numel() for weight in family.model.parameters())
        again = load_family(ModelConfig(model=str(copy)), torch.float32)
        result["logit_difference"] = (logits_of(again.model, probe) - expected).abs().max().item()
    if not result["logit_difference"] <= TOLERANCE:
        raise ValueError(
            f"--model {args.model}: read back, its logits differ by {result['logit_difference']:.2g} (allowed {TOLERANCE:g})"
        )
    said = read_json(args.model / "config.json").get("architectures") or []
    result["family"], result["architectures"] = family.name, said
    result["servers"] = [
        {
            "server": server.name,
            "class": server.architecture,
            "named": server.architecture in said,
            "needs": server.needs,
        }
        for server in SERVERS.get(family.name, ())
    ]
    return result


def show(result: dict[str, Any], args: Any) -> None:
    print(f"{result['model']}: {result['family']}, {result['tensors']:,} tensors, {result['parameters']:,} parameters")
    if "published" in result:
        print(f"  names are those of {args.published}")
    print("  saved again: the same names, shapes and bytes")
    print(f"  read back: logits differ by {result['logit_difference']:.2g}")
    for server in result["servers"]:
        named = "config.json names it" if server["named"] else "config.json does NOT name it"
        print(f"  {server['server']}: class {server['class']} ({named}); needs {server['needs']}. Not tried here.")
    if not result["servers"]:
        print("  no server that reads this class is known here; python -m drive_vlm generate answers with it")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
