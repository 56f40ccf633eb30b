"""The policy of a GRPO run (its loading is that of preference training too), the frozen reference it is held to, and its vision tower."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from drive_vlm.config import ModelConfig, RunConfig
from drive_vlm.models import load_family
from drive_vlm.models.freezing import freeze
from drive_vlm.models.lora import apply_lora
from drive_vlm.sampling.vision import install_in
from drive_vlm.stages.engine.run import model_dtype, weights_to_load
from drive_vlm.store.fingerprint import model_fingerprint


def load_policy(model: ModelConfig, run: RunConfig, args: Any) -> Any:
    """The family that trains: of --model, or of the checkpoint that is resumed. An adapter directory trains on from its adapter.

    Raises ValueError for an adapter with --lora_rank, and for freezing what an adapter is made of.
    """
    source = weights_to_load(model, args.resume_from_checkpoint)
    family = load_family(source, model_dtype(model, args), for_training=True, chunk_tokens=run.chunk_tokens)
    if not hasattr(family.model, "peft_config"):
        freeze(family.model, family.parts, model.freeze)
        if model.lora_rank:
            family.model = apply_lora(family, model, model.freeze)
        return family
    if model.lora_rank:
        raise ValueError(
            f"--model {model.model} is an adapter and trains on as it is: leave --lora_rank out, or merge it first "
            "(python -m drive_vlm merge) to put a new adapter on the result."
        )
    if "language_model" in model.freeze:
        raise ValueError("--freeze language_model: the adapter of --model is all that trains there. Leave it out.")
    freeze(family.model.get_base_model(), family.parts, model.freeze)
    return family


# reference


@contextlib.contextmanager
def without_own_reference(model: Any, args: Any) -> Iterator[None]:
    """While TRL's trainer is built: with adapters it copies the one of `model`, as it is to be; without, it would load the
    reference from where the policy's weights came from, which is a checkpoint when a run is resumed."""
    beta = args.beta
    if not hasattr(model, "peft_config"):
        args.beta = 0.0
    try:
        yield
    finally:
        args.beta = beta


def attach_reference(trainer: Any, model: ModelConfig, args: Any, features: Any) -> None:
    """Give the trainer what its KL term looks at: the copied adapter, or --model once more, frozen; nothing with --beta 0.

    Raises ValueError when the adapter was not copied whole.
    """
    trainer.beta = args.beta
    if not args.beta:
        return
    trainer.facts["reference"] = model_fingerprint(model.model).get("weights", model.model)
    policy = trainer.model
    if hasattr(policy, "peft_config"):
        _check_copy(policy)
        return
    from trl.models import prepare_deepspeed
    from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

    family = load_family(dataclasses.replace(model, lora_rank=0), policy.dtype, for_training=True)
    family.model.requires_grad_(False)
    if features is not None:
        from drive_vlm.models.vision_features import detach_tower

        detach_tower(family, features.feature_shape, keep=False)
    elif trainer.memo is not None:
        install_in(trainer.memo, family)
    if args.disable_dropout:
        disable_dropout_in_model(family.model)
    family.model.config.get_text_config().pad_token_id = policy.config.get_text_config().pad_token_id
    add_fused_lm_head(family.model, temperature=args.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(family.model, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(family.model, evaluation_mode=True)
    trainer.ref_model.eval()


def _check_copy(policy: Any) -> None:
    """`ref` must be `default` to the last bit: adapter, and parts that train in full beside it (modules_to_save)."""
    weights = dict(policy.named_parameters(remove_duplicate=False))
    own = {name: weight for name, weight in weights.items() if ".default." in name}
    for name, weight in own.items():
        copy = weights.get(name.replace(".default.", ".ref."))
        if copy is None or copy.requires_grad or not torch.equal(_shard(copy), _shard(weight)):
            raise ValueError(
                f"{name}: the reference adapter does not hold the same weight, so the KL would be to something else. "
                "Merge the adapter (python -m drive_vlm merge) and train without --deepspeed zero3, or use --beta 0."
            )
    assert own, "a PeftModel has an adapter"


def _shard(weight: Any) -> torch.Tensor:
    """What this rank holds of a weight: under ZeRO-3 its part."""
    return getattr(weight, "ds_tensor", weight).detach()
