"""Every private method of transformers and TRL that our trainers override: it still exists, with the same parameters.

An upgrade that renames or changes one would leave ours uncalled, or called with something else, without an error. Such a
test fails instead, and says where to look.
"""

import importlib
import inspect

import pytest

TRAINER = "transformers.trainer:Trainer"
DPO, GRPO = "trl.trainer.dpo_trainer:DPOTrainer", "trl.trainer.grpo_trainer:GRPOTrainer"

# Upstream class -> {private method that we override: its parameters}. Why we do stands in the docstring of ours.
HOOKS: dict[str, dict[str, tuple[str, ...]]] = {
    TRAINER: {
        "_get_num_items_in_batch": ("batch_samples", "device"),
        "_save_checkpoint": ("model", "trial"),
        "_save": ("output_dir", "state_dict"),
        "_prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
        "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
        "_load_best_model": (),
        "_determine_best_metric": ("metrics", "trial"),
        "_load_optimizer_and_scheduler": ("checkpoint",),
        "_init_training_state": (
            "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial",
        ),
        "_prepare_input": ("data",),
        "_prepare_inputs": ("inputs",),
        "_maybe_log_save_evaluate": (
            "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate",
        ),
        "_run_epoch": (
            "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
            "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
    },
    "trl.trainer.base_trainer:_BaseTrainer": {"_send_telemetry": ()},
    DPO: {
        "_prepare_dataset": ("dataset", "processing_class", "args", "dataset_name"),
        "_precompute_ref_logps": ("dataset", "name", "batch_size"),
        "_compute_loss": ("model", "inputs", "return_outputs"),
        # Makes a model card, then calls the Trainer's.
        "_save_checkpoint": ("model", "trial"),
    },
    GRPO: {
        "_generate_and_score_completions": ("inputs",),
        "_tokenize_prompts": ("prompts",),
        "_generate": ("prompts",),
        "_load_optimizer_and_scheduler": ("checkpoint",),
        "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
        "_prepare_inputs": ("generation_batch",),
        "_compute_loss": ("model", "inputs"),
        "_get_per_token_logps_and_entropies": (
            "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss",
            "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
            "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
        ),
        "_save_checkpoint": ("model", "trial"),
    },
}  # fmt: skip


def our_trainers() -> list[type]:
    """The Trainer of every stage of the table."""
    from drive_vlm.stages.preference.trainer import PreferenceTrainer
    from drive_vlm.stages.rl.a2c_trainer import A2CTrainer
    from drive_vlm.stages.rl.grpo_trainer import GRPOTrainer
    from drive_vlm.stages.sft_trainer import SFTTrainer

    return [SFTTrainer, PreferenceTrainer, GRPOTrainer, A2CTrainer]


def overridden(trainer: type) -> set[tuple[str, str]]:
    """(upstream class, private method) of all that a class of ours hides in the MRO of `trainer`."""
    found = set()
    for i, ours in enumerate(trainer.__mro__):
        if not ours.__module__.startswith(("drive_vlm", "tests", "toy")):
            continue
        private = {name for name in vars(ours) if name.startswith("_") and not name.startswith("__")}
        for theirs in trainer.__mro__[i + 1 :]:
            if theirs.__module__.split(".")[0] in ("transformers", "trl"):
                found |= {(f"{theirs.__module__}:{theirs.__name__}", name) for name in private & vars(theirs).keys()}
    return found


def test_every_overridden_private_method_is_listed_and_every_listed_one_overridden() -> None:
    found = set().union(*map(overridden, our_trainers()))
    listed = {(owner, name) for owner, methods in HOOKS.items() for name in methods}
    assert found - listed == set(), "overridden, but not in HOOKS: add it, with its parameters"
    assert listed - found == set(), "in HOOKS, but gone upstream (or no longer overridden): see what took its place"


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, methods in HOOKS.items() for name in methods])
def test_it_has_the_parameters_that_ours_expects(owner: str, name: str) -> None:
    module, _, cls = owner.partition(":")
    method = getattr(importlib.import_module(module), cls).__dict__.get(name)
    assert method is not None, f"{owner} has no {name} any more"
    assert tuple(inspect.signature(method).parameters)[1:] == HOOKS[owner][name]


def test_the_walk_finds_a_method_that_is_not_listed() -> None:
    class Careless(our_trainers()[0]):  # type: ignore[misc]
        __module__ = "drive_vlm.careless"

        def _load_rng_state(self, checkpoint: str) -> None: ...

    assert (TRAINER, "_load_rng_state") in overridden(Careless)


def test_every_trainer_of_the_table_is_walked() -> None:
    """A stage's `prepare` names the Trainer that it returns."""
    from drive_vlm.stages import STAGES
    from drive_vlm.stages.engine.stage import load

    named = {inspect.signature(load(stage.prepare)).return_annotation for stage in STAGES.values()}
    walked = {trainer.__name__ for trainer in our_trainers()}
    assert {str(annotation).split("[")[1].split(",")[0].strip("'\"") for annotation in named} == walked
