"""One plain model directory, loadable by from_pretrained, out of a LoRA checkpoint or DeepSpeed ZeRO shards."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, ModelConfig
from drive_vlm.stages.arguments import stop_on_user_error

EXAMPLES = """
python -m drive_vlm merge --checkpoint runs/lora/checkpoint-500 --out runs/lora/merged
python -m drive_vlm merge --checkpoint runs/zero3/checkpoint-500 --out runs/zero3/merged
"""


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm merge`."""
    parser = CommandParser(prog="python -m drive_vlm merge", description=__doc__, examples=EXAMPLES)
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="checkpoint directory: a LoRA adapter, or one with global_step*/ ZeRO shards",
    )
    parser.add_argument("--out", required=True, help="directory to write; must not exist or be empty")
    parser.add_argument(
        "--model", help="base of a ZeRO checkpoint without config.json (default: the checkpoint itself)"
    )
    flags = parser.parse_args(list(words))
    try:
        merge(Path(flags.checkpoint), Path(flags.out), flags.model)
    except ValueError as error:
        stop_on_user_error("merge", error)


def merge(checkpoint: Path, out: Path, base: str | None = None) -> None:
    """Write the merged model and processor to `out`.

    Raises ValueError for a checkpoint of neither kind, an adapter without weights of its own, missing or foreign tensors.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: not empty. Give a new directory.")
    if (checkpoint / "adapter_config.json").is_file():
        model, processor = _merge_adapter(checkpoint)
    elif any(checkpoint.glob("global_step*")):
        model, processor = _merge_shards(checkpoint, base or str(checkpoint))
    else:
        raise ValueError(
            f"--checkpoint {checkpoint}: neither adapter_config.json nor global_step*/ shards in it. Give a checkpoint-N directory."
        )
    model.save_pretrained(out)
    processor.save_pretrained(out)
    print(json.dumps({"out": str(out), "parameters": sum(p.numel() for p in model.parameters())}))


def _merge_adapter(checkpoint: Path) -> tuple[Any, Any]:
    """Base weights plus the adapter's. An adapter whose B matrices are all zero has learned nothing: an error."""
    import torch

    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(checkpoint)), torch.float32)
    learned = [p for name, p in family.model.named_parameters() if "lora_B" in name]
    if not any(bool(p.any()) for p in learned):
        raise ValueError(
            f"{checkpoint}: the adapter is empty (all of its {len(learned)} B matrices are zero). The run did not train it."
        )
    return family.model.merge_and_unload(safe_merge=True), family.processor


def _merge_shards(checkpoint: Path, base: str) -> tuple[Any, Any]:
    """fp32 weights out of the optimizer's shards, laid into the model's own class."""
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from drive_vlm.models import load_family

    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    family = load_family(ModelConfig(model=base), torch.float32)
    result = family.model.load_state_dict(state, strict=False)
    tied = (
        set(getattr(family.model, "_tied_weights_keys", None) or ())
        if family.model.config.tie_word_embeddings
        else set()
    )
    missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{checkpoint}: the shards do not fit {base}: {len(missing)} tensors missing (first {missing[:1]}), "
            f"{len(result.unexpected_keys)} foreign (first {result.unexpected_keys[:1]}). Give the model that the run started from (--model)."
        )
    return family.model, family.processor
