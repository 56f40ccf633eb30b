"""LoRA checkpoint or DeepSpeed ZeRO shards -> one plain model directory that from_pretrained loads; then verified."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, ModelConfig, output_folder, user_errors
from drive_vlm.store.forms import read_object

EXAMPLES = """
python -m drive_vlm merge --checkpoint runs/lora/checkpoint-500 --out runs/lora/merged
python -m drive_vlm merge --checkpoint runs/zero3/checkpoint-500 --out runs/zero3/merged --dtype bfloat16
"""

# Largest difference of a logit, in standard deviations of the logits: the same sums in another order round differently.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm merge`."""
    parser = CommandParser(prog="python -m drive_vlm merge", description=__doc__, examples=EXAMPLES)
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="checkpoint directory: a LoRA adapter, or one with global_step*/ ZeRO shards",
    )
    parser.add_argument(
        "--out", type=output_folder, required=True, help="directory to write; must not exist or be empty"
    )
    parser.add_argument("--dtype", default="float32", choices=tuple(_TOLERANCE), help="of the weights that are written")
    parser.flag(
        "--trust_checkpoint",
        False,
        "take shards that hold more than tensors; their code runs, so only if you trust who wrote them",
    )
    flags = parser.parse_args(list(words))
    with user_errors(parser.prog):
        merge(Path(flags.checkpoint), flags.out, flags.dtype, flags.trust_checkpoint)


def merge(checkpoint: Path, out: Path, dtype: str = "float32", trusted: bool = False) -> None:
    """Write the merged model and processor to a folder next to `out`, read it back, compare its logits with those of the
    checkpoint, and give it its name: neither a full disk nor a kill leaves half a model there.

    Raises ValueError for a checkpoint of neither kind, shards that hold more than tensors unless `trusted`, an adapter that
    learned nothing, missing or foreign tensors, and when the logits differ.
    """
    import torch
    from safetensors import SafetensorError

    from drive_vlm.models import load_family
    from drive_vlm.stages.engine.trust import refuse_code, shards_of

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: not empty. Give a new directory.")
    if not (checkpoint / "adapter_config.json").is_file() and not any(checkpoint.glob("global_step*")):
        if (checkpoint / "config.json").is_file() and any(checkpoint.glob("*.safetensors")):
            raise ValueError(
                f"--checkpoint {checkpoint}: a whole model, neither a LoRA adapter nor ZeRO shards: there is nothing to merge. "
                "from_pretrained and every --model take it as it is."
            )
        raise ValueError(
            f"--checkpoint {checkpoint}: neither adapter_config.json nor global_step*/ shards in it. Give a checkpoint-N directory."
        )
    refuse_code(shards_of(checkpoint), trusted)
    family = load_family(ModelConfig(model=str(checkpoint)), torch.float32)
    probe = probe_of(family)
    expected = logits_of(family.model, probe)
    if (checkpoint / "adapter_config.json").is_file():
        model = _merge_adapter(checkpoint, family.model)
    else:
        model = _merge_shards(checkpoint, family.model)
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    # What a killed merge has left.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        try:
            model.to(getattr(torch, dtype)).save_pretrained(partial)
            family.processor.save_pretrained(partial)
        # RuntimeError and SafetensorError are how torch and safetensors report a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"--out {out}: could not be written ({str(error).splitlines()[0]}); nothing is left of it, and {checkpoint} is untouched."
            ) from error
        del model, family
        difference, parameters = _compare(partial, probe, expected, checkpoint, out, dtype)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(json.dumps({"out": str(out), "parameters": parameters, "dtype": dtype, "logit_difference": difference}))


def _compare(
    written: Path, probe: dict[str, Any], expected: Any, checkpoint: Path, out: Path, dtype: str
) -> tuple[float, int]:
    """How far the logits of the model that was written are from `expected float32[1, T, V]`, in their standard deviations, and
    its parameters. Raises ValueError where that is more than rounding."""
    import torch

    from drive_vlm.models import load_family

    merged = load_family(ModelConfig(model=str(written)), torch.float32)
    difference = ((logits_of(merged.model, probe) - expected).abs().max() / expected.std()).item()
    allowed = _TOLERANCE["bfloat16" if "bfloat16" in (dtype, _saved_dtype(checkpoint)) else "float32"]
    if not difference <= allowed:
        raise ValueError(
            f"--out {out}: the merged model is not the one that trained: its logits differ by {difference:.2g} standard deviations "
            f"(allowed {allowed:g}). Nothing is left of it; merge an earlier checkpoint, and report this with "
            f"{checkpoint / 'complete.json'}."
        )
    return difference, sum(p.numel() for p in merged.model.parameters())


def _merge_adapter(checkpoint: Path, model: Any) -> Any:
    """Base weights plus the adapter's. Raises ValueError for an adapter whose B matrices are all zero: it has learned nothing."""
    learned = [p for name, p in model.named_parameters() if "lora_B" in name]
    if not any(bool(p.any()) for p in learned):
        raise ValueError(
            f"{checkpoint}: the adapter is empty (all of its {len(learned)} B matrices are zero). The run did not train it."
        )
    return model.merge_and_unload(safe_merge=True)


def _merge_shards(checkpoint: Path, model: Any) -> Any:
    """The optimizer's fp32 masters out of the shards, laid over the weights that the checkpoint holds in the run's dtype."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from drive_vlm.launch.checkpoint import names_digest, read_complete

    facts = read_complete(checkpoint)
    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), exclude_frozen_parameters=True)
    # Modules that a stage had added to the model, such as a value head: they trained, and the merged model is whole without.
    tops = {name for name, _ in model.named_children()}
    added = {name: tensor.numel() for name, tensor in state.items() if name.split(".")[0] not in tops}
    state = {name: tensor for name, tensor in state.items() if name not in added}
    # strict=False: the shards hold what trained, and the frozen rest is in the model already. The digest below compares the names.
    foreign = model.load_state_dict(state, strict=False).unexpected_keys
    trained = {name: p.numel() for name, p in model.named_parameters() if name in state} | added
    if foreign or names_digest(trained) != facts.trained:
        raise ValueError(
            f"{checkpoint}: the shards do not hold what trained: {len(trained)} tensors found, {len(foreign)} foreign (first {foreign[:1]}). "
            "A shard is of another run, or missing; merge another checkpoint."
        )
    return model


def _saved_dtype(checkpoint: Path) -> str:
    """dtype of the weights in the checkpoint; float32 for an adapter, which is compared with itself."""
    config = checkpoint / "config.json"
    return read_object(config).get("dtype", "float32") if config.is_file() else "float32"


def probe_of(family: Any) -> dict[str, Any]:
    """One question with a picture, as the model sees it."""
    from PIL import Image

    from drive_vlm.data.collate import Collator
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.samples import parse_row

    picture = "<image>\n" if family.vision else ""
    words = [{"from": "human", "value": picture + "Describe the scene."}, {"from": "gpt", "value": "A car brakes."}]
    with tempfile.TemporaryDirectory() as folder:
        row: dict[str, Any] = {"id": "probe", "conversations": words}
        if picture:
            Image.linear_gradient("L").convert("RGB").save(Path(folder) / "probe.png")
            row["image"] = "probe.png"
        sample = parse_row(row, "probe", folder, True)
        encoded = Encoder(family.tokenizer, family.template, family.vision).encode(sample)
    batch = Collator(family.tokenizer.pad_token_id, family.vision, False)([[encoded]])
    return {name: batch[name] for name in batch if name not in ("labels", "sample_ids", "bad_rows", "num_tokens")}


def logits_of(model: Any, probe: dict[str, Any]) -> Any:
    """float32[1, T, V]."""
    import torch

    model.eval()
    with torch.no_grad():
        return model(**probe).logits.float()
