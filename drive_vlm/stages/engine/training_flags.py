"""Which flags of TrainingArguments and of TRL's configurations a stage takes, and in which range; the rest is refused by name.

The Trainer has over a hundred flags. Many were made for another forward pass, data loader or evaluation than ours: they would
bend the loss (--label_smoothing_factor does not shift the labels of these models), or do nothing, in silence. So a flag is
taken when a test shows that it does here what it says (tests/stages/engine/test_training_flags.py), and no other. That test
also finds a flag of an installed version that is neither taken nor refused with a reason. No torch.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from drive_vlm.config import DataConfig, ModelConfig, nearest
from drive_vlm.stages.engine.score_flags import ScoreFlags

# Of every stage.
_SHARED = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
    warmup_steps optim weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 tf32 gradient_checkpointing
    activation_checkpointing seed data_seed full_determinism use_cpu torch_empty_cache_steps dataloader_num_workers
    dataloader_pin_memory dataloader_prefetch_factor logging_strategy logging_steps logging_first_step log_level
    log_level_replica log_on_each_node disable_tqdm report_to run_name project save_strategy save_steps ddp_backend
    ddp_timeout ddp_bucket_cap_mb train_sampling_strategy hub_token
"""
_EVALUATION = """
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size load_best_model_at_end metric_for_best_model
    greater_is_better
"""
EVALUATION = frozenset(_EVALUATION.split())
# TrainingArguments class -> the flags that its stages take.
ACCEPTED: dict[str, frozenset[str]] = {
    "transformers.TrainingArguments": frozenset(f"{_SHARED} {_EVALUATION}".split()),
    "trl.DPOConfig": frozenset(f"{_SHARED} {_EVALUATION} beta loss_type loss_weights disable_dropout".split()),
    "trl.GRPOConfig": frozenset(
        f"""{_SHARED} {_EVALUATION} beta num_generations max_completion_length generation_batch_size
        steps_per_generation num_iterations temperature top_p top_k min_p repetition_penalty reward_weights scale_rewards
        loss_type epsilon epsilon_high delta importance_sampling_level mask_truncated_completions multi_objective_aggregation
        use_bias_correction_kl top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
        entropy_coef_delta entropy_target shuffle_dataset ds3_gather_for_generation disable_dropout use_vllm vllm_mode
        vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
        vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size
        vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max
        vllm_importance_sampling_clip_min""".split()
    ),
}
_HUB = "Upload the finished --output_dir with `hf upload`."
_COMPILED = "The forward passes that this project replaces are not compiled."
_LOADER = "Rows are loaded and dealt to the ranks by a loader of the project's own, which does not have it."
_PREDICTIONS = "An evaluation adds up the loss of all rows; predictions are not kept. --eval_generate answers rows."
_SHARDED = "Memory layouts are DeepSpeed's: use --deepspeed."
_OPTIMIZERS = "The optimizers that --optim offers are set by flags of their own."
_LIGER = (
    "It would replace the forward passes in which the loss is computed; the head's loss is computed in chunks already."
)
_TRACKIO = "Trackio keeps its files on this machine; send them with its own command."
_REFERENCE = "The reference stays as it is for the whole run."
_LOSSES = "It belongs to a loss that --loss_type does not offer."
_SAMPLES = "samples.jsonl has every completion, with its row and rewards (--sample_steps)."
_SAMPLING = "Completions are sampled by --temperature, --top_p, --top_k, --min_p and --repetition_penalty."
# What another flag owns: refused as soon as it is read.
OWNED_ELSEWHERE: dict[str, str] = {
    "gradient_accumulation_steps": "It follows from --global_batch_size, --per_device_train_batch_size and the number of processes.",
    "save_total_limit": "Use --keep.",
    "resume_from_checkpoint": "Use --resume.",
    "ignore_data_skip": "A resumed run always goes on where it stopped.",
    "save_only_model": "A checkpoint holds what a resume needs; the final model in --output_dir holds no optimizer.",
    "save_on_each_node": "Checkpoints are for all nodes: --output_dir must be a folder that all nodes see.",
    "dataloader_drop_last": "No row is dropped: the last step of an epoch may be smaller.",
    "auto_find_batch_size": "The batch size is never changed silently.",
    "push_to_hub": _HUB,
}
# Why the others are not taken. Where a stage's own `check` has better words it comes first.
REFUSED: dict[str, str] = {
    **OWNED_ELSEWHERE,
    "label_smoothing_factor": "transformers' smoother does not shift the labels of vision-language models: they would learn to repeat "
    "their input. The loss is the plain next-token loss.",
    "average_tokens_across_devices": "The loss always counts the tokens of all processes.",
    "neftune_noise_alpha": "Its noise follows the padded length of a batch, so that the loss would depend on how rows are batched.",
    "use_cache": "Training keeps no cache of keys and values.",
    "logging_nan_inf_filter": "A loss that is not finite ends the run, with its rows.",
    "remove_unused_columns": "The trainer takes what a batch has for it.",
    "label_names": "The labels are the assistant's words.",
    "length_column_name": "Lengths are measured by the data path.",
    "include_num_input_tokens_seen": "metrics.jsonl has the tokens a second.",
    "skip_memory_metrics": "run.json has the peak memory.",
    "debug": "A loss or weight that is not finite ends the run anyway, with its rows.",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway.",
    "restore_callback_states_from_checkpoint": "A resumed run takes its settings from the flags.",
    "gradient_checkpointing_kwargs": "Checkpointing has one form here, which also works where parts are frozen.",
    "ddp_find_unused_parameters": "Every weight that trains has a gradient, or the run stops with its name.",
    "ddp_broadcast_buffers": "No buffer of these models changes in training.",
    "ddp_static_graph": "Batches with pictures and without have different graphs.",
    "deepspeed_config": "Use --deepspeed.",
    "local_rank": "The launcher says it (LOCAL_RANK).",
    "optim_args": _OPTIMIZERS,
    "optim_target_modules": _OPTIMIZERS,
    "parallelism_config": "Every process takes its own share of the global batch.",
    "accelerator_config": _LOADER,
    "model_init_kwargs": "Use --dtype and --attn_implementation.",
    "router_aux_loss_coef": "Mixtures of experts are not offered.",
    "pad_to_multiple_of": "The data path pads.",
    "activation_offloading": "No test shows its effect on these models. Use --gradient_checkpointing.",
    "num_generations_eval": "An evaluation answers each row of --eval_generate once.",
    "generation_kwargs": _SAMPLING,
    "cache_implementation": _SAMPLING,
    "chat_template_kwargs": "Prompts are rendered by the data path, as in sft.",
    "cast_lm_head_to_fp32": "Log-probabilities are computed in float32 from the head's logits.",
    "max_tool_calling_iterations": "A completion is one answer, without tools.",
    "off_policy_mask_threshold": "Completions are sampled by the policy that trains.",
    "vllm_structured_outputs_regex": "Completions are free text.",
    "vllm_importance_sampling_cap": "It is an old name. Use --vllm_importance_sampling_clip_max.",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "An evaluation runs in the precision of the training."),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "A stage trains, and evaluates where there are rows for it (--eval_data, --eval_generate)."),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILED),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), _LIGER),
    **dict.fromkeys(("fsdp", "fsdp_config"), _SHARDED),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), _PREDICTIONS),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _PREDICTIONS),
    **dict.fromkeys(("dataloader_persistent_workers", "dataloader_multiprocessing_context"), _LOADER),
    "dataloader_in_order": _LOADER,
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_k_neg"), _LOSSES),
    **dict.fromkeys(("vespo_lambda_pos", "vespo_lambda_neg"), _LOSSES),
    **dict.fromkeys(("log_completions", "log_multimodal", "num_completions_to_print"), _SAMPLES),
    **dict.fromkeys(("log_unique_prompts", "log_completions_hub_repo"), _SAMPLES),
    **dict.fromkeys(("use_transformers_continuous_batching", "transformers_continuous_batching_config"), _SAMPLING),
    "use_transformers_paged": _SAMPLING,
}  # fmt: skip
# activation_checkpointing_kwargs is transformers' new name; the project sets it itself.
REFUSED["activation_checkpointing_kwargs"] = REFUSED["gradient_checkpointing_kwargs"]

_ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
_LION = ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit")
# Those that read the rate off the number of the step alone: a resumed run finds it again, and takes new flags over.
_SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
)  # fmt: skip
CHOICES: dict[str, tuple[str, ...]] = {
    "lr_scheduler_type": _SCHEDULES,
    "optim": (*_ADAM, *_LION, "adafactor", "sgd", "adagrad", "rmsprop"),
    "train_sampling_strategy": ("random", "group_by_length"),
    "save_strategy": ("no", "steps", "epoch", "best"),
    "eval_strategy": ("no", "steps", "epoch"),
    "logging_strategy": ("no", "steps", "epoch"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
_GRPO_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")
# What dpo and spin log of their pairs.
PAIR_FIGURES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
# Figures of an evaluation, by which the best checkpoint may be chosen.
METRICS = {"transformers.TrainingArguments": ("loss",), "trl.DPOConfig": ("loss", *PAIR_FIGURES)}

_TINY = 1e-30
# (least, most) of a number. The others are from 0 to 1e9.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "generation_batch_size"), (1, 2**20)),
    **dict.fromkeys(("steps_per_generation", "num_iterations", "max_completion_length"), (1, 2**20)),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), (_TINY, 1e9)),
    **dict.fromkeys(("max_grad_norm", "delta", "epsilon", "epsilon_high"), (0, 1e30)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 1 - 1e-9)),
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization"), (_TINY, 1)),
    **dict.fromkeys(("min_p", "top_entropy_quantile"), (0, 1)),
    **dict.fromkeys(("temperature", "repetition_penalty"), (_TINY, 1000)),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("ddp_timeout", "ddp_bucket_cap_mb", "torch_empty_cache_steps", "vllm_tensor_parallel_size"), (1, 1e9)),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), (1, 65535)),
    "num_generations": (2, 2**20),
    "dataloader_num_workers": (0, 1024),
    "dataloader_prefetch_factor": (1, 1024),
    "learning_rate": (0, 100),
    "weight_decay": (0, 100),
    "adam_epsilon": (_TINY, 1),
    "beta": (0, 1000),
    "max_steps": (-1, 1e9),
    "reward_weights": (-1e9, 1e9),
}  # fmt: skip


def refusal(name: str) -> str:
    """Why a flag is not taken."""
    why = REFUSED.get(
        name,
        "It is newer than the list of flags that are known to do here what they say (stages/engine/training_flags.py).",
    )
    return f"--{name} is not taken. {why}"


def check_training_flags(
    stage: str,
    training_class: str,
    given: Iterable[str],
    training: dict[str, Any],
    model: ModelConfig,
    data: DataConfig,
    scores: ScoreFlags,
) -> dict[str, Any]:
    """The flags of `training`, with what some of them ask for. Raises ValueError for a flag of `given` that the stage does not
    take, for a value out of its range or choices, and for a flag that another one, or its absence, leaves without effect.

    A class that is not in ACCEPTED is a stage's own: it may have any flag that REFUSED does not name.
    """
    accepted = ACCEPTED.get(training_class, ACCEPTED["transformers.TrainingArguments"])
    for name in given:
        if name not in accepted and (training_class in ACCEPTED or name in REFUSED):
            raise ValueError(refusal(name))
    for name, value in training.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            _check_value(name, one, training_class)
    if (kwargs := training.get("lr_scheduler_kwargs")) is not None:
        try:
            read = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise ValueError(
                f"--lr_scheduler_kwargs {kwargs}: write a JSON object, such as '{{\"min_lr_rate\": 0.1}}'."
            )
    training = _strategies(training)
    _check_evaluation(stage, training_class, training, data, scores)
    _check_optimizer(training)
    if model.lora_dropout and training.get("disable_dropout", training_class == "trl.DPOConfig"):
        raise ValueError(
            f"--lora_dropout has no effect in {stage}, which disables dropout. Add --disable_dropout false."
        )
    return training


def _check_value(name: str, value: Any, training_class: str) -> None:
    choices = CHOICES.get(name)
    if name == "loss_type" and training_class == "trl.GRPOConfig":
        choices = _GRPO_LOSSES
    value = getattr(value, "value", value)
    if choices and value not in choices:
        raise ValueError(
            f"--{name} {value} is not offered (known: {', '.join(choices)}).{nearest(str(value), choices)}"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    least, most = RANGES.get(name, (0, 1e9))
    if not math.isfinite(value):
        raise ValueError(f"--{name} {value}: give a number.")
    if not least <= value <= most:
        shown = "above 0" if least == _TINY and value <= 0 else f"from {least:g} to {most:g}"
        raise ValueError(f"--{name} {value}: it must be {shown}.")
    if name == "max_steps" and value == 0:
        raise ValueError("--max_steps 0 trains nothing. Leave it out: then --num_train_epochs counts.")


def _check_evaluation(
    stage: str, training_class: str, training: dict[str, Any], data: DataConfig, scores: ScoreFlags
) -> None:
    metric, known = training.get("metric_for_best_model"), METRICS.get(training_class, ())
    if scores.eval_generate:
        known = (*(known if data.eval_data else ()), *scores.eval_metric)
        if training.get("eval_strategy") == "no":
            raise ValueError("--eval_generate has no effect with --eval_strategy no. Leave one of them out.")
        _check_scored_checkpoints(training)
    if metric is not None and known and metric.removeprefix("eval_") not in known:
        names = [f"eval_{name}" for name in known]
        raise ValueError(
            f"--metric_for_best_model {metric}: an evaluation of {stage} has {', '.join(names)}.{nearest(metric, names)}"
        )
    asked = [
        f"--{name}"
        for name in ("eval_on_start", "load_best_model_at_end", "metric_for_best_model")
        if training.get(name)
    ]
    asked += ["--eval_strategy"] if training.get("eval_strategy", "no") != "no" else []
    asked += ["--save_strategy best"] if training.get("save_strategy") == "best" else []
    if asked and not data.eval_data and not scores.eval_generate:
        raise ValueError(
            f"{asked[0]} needs rows to evaluate: give --eval_data (its loss) or --eval_generate (scores of answers), or leave it out."
        )


def _check_scored_checkpoints(training: dict[str, Any]) -> None:
    """Raises ValueError where checkpoints would be written without a score, so that none of them could be the best."""
    save, evaluate = training.get("save_strategy"), training.get("eval_strategy")
    if {save, evaluate} == {"steps", "epoch"}:
        raise ValueError(
            f"--save_strategy {save} with --eval_strategy {evaluate}: checkpoints would have no score of --eval_generate. Save and "
            "evaluate by the same, or give --save_strategy best."
        )
    given = {"save_steps", "eval_steps"} <= training.keys()
    if save == evaluate == "steps" and given and training["save_steps"] % training["eval_steps"]:
        raise ValueError(
            f"--save_steps {training['save_steps']:g} is not a multiple of --eval_steps {training['eval_steps']:g}: checkpoints would have no score of "
            "--eval_generate. Change one of them."
        )


def _check_optimizer(training: dict[str, Any]) -> None:
    optim, schedule = training.get("optim", _ADAM[0]), training.get("lr_scheduler_type", "linear")
    if schedule == "constant" and training.get("warmup_steps"):
        raise ValueError("--warmup_steps has no effect with --lr_scheduler_type constant. Use constant_with_warmup.")
    adam = [name for name in ("adam_beta1", "adam_beta2", "adam_epsilon") if name in training]
    if adam and optim not in (*_ADAM, *_LION):
        raise ValueError(f"--{adam[0]} has no effect with --optim {optim}. Leave it out.")


def _strategies(training: dict[str, Any]) -> dict[str, Any]:
    """With --save_steps or --eval_steps the strategy is "steps", unless it is "no", which turns the steps of a recipe off. Raises
    ValueError where it is another one."""
    for kind in ("save", "eval"):
        if f"{kind}_steps" in training:
            strategy = training.get(f"{kind}_strategy", "steps")
            if strategy == "no":
                continue
            if strategy != "steps":
                raise ValueError(
                    f"--{kind}_steps has no effect with --{kind}_strategy {strategy}. Leave one of them out."
                )
            training = training | {f"{kind}_strategy": "steps"}
    return training
