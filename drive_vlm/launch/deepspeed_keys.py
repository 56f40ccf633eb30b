"""The keys that DeepSpeed 0.19 knows, by section, with their kind where its models have one (key:bool, key:int, key:number).

Why not ask DeepSpeed's own pydantic models? They are neither as early nor as clear:
* `import deepspeed` takes 4.4 s of processor time (0.14 s for this check) and loads torch, which `plan` and `--help` do not.
* Only some sections are models. The top level, aio, checkpoint and others are plain dicts, where an unknown key is ignored.
* "Extra inputs are not permitted" has no file, line or nearest key, and "overlap_comm": "yes" is accepted.
These lists are still not a second owner: tests/launch/test_deepspeed_keys.py derives every one of them from the installed
DeepSpeed, and fails where they differ.
"""

_KEYS = {
    "": """
        activation_checkpointing aio bf16 checkpoint comet comms_logger communication_data_type compile csv_monitor data_types
        disable_allgather disable_python_gc dump_state flops_profiler fp16 gradient_accumulation_steps gradient_clipping
        gradient_predivide_factor log_level memory_breakdown optimizer prescale_gradients scheduler
        seq_parallel_communication_data_type steps_per_print tensorboard timers train_batch_size train_micro_batch_size_per_gpu
        vocabulary_size wall_clock_breakdown wandb zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """,
    "zero_optimization": """
        stage contiguous_gradients:bool reduce_scatter:bool reduce_bucket_size:int use_multi_rank_bucket_allreduce:bool
        allgather_partitions:bool allgather_bucket_size:int overlap_comm:bool compute_grad_norm:bool load_from_fp32_weights:bool
        elastic_checkpoint:bool offload_param offload_optimizer zenflow sub_group_size:int prefetch_bucket_size:int
        param_persistence_threshold:int model_persistence_threshold:int max_live_parameters:int max_reuse_distance:int
        gather_16bit_weights_on_model_save:bool module_granularity_threshold:int use_all_reduce_for_fetch_params:bool
        allgather_sequential:bool stage3_prefetch_bucket_size:int stage3_param_persistence_threshold:int
        stage3_model_persistence_threshold:int stage3_max_live_parameters:int stage3_max_reuse_distance:int
        stage3_gather_16bit_weights_on_model_save:bool stage3_module_granularity_threshold:int
        stage3_use_all_reduce_for_fetch_params:bool stage3_allgather_sequential:bool ignore_unused_parameters:bool
        round_robin_gradients:bool parameter_alignment:bool zero_hpz_partition_size:int zero_quantized_weights:bool
        zero_quantized_nontrainable_weights:bool zero_quantized_gradients:bool memory_efficient_linear:bool
        pipeline_loading_checkpoint:bool override_module_apply:bool log_trace_cache_warnings:bool enable_sanity_checks:bool
        save_muon_momentum_buffer_in_memory:bool leaf_module
    """,
    "zero_optimization.offload_param": "device nvme_path buffer_count:int buffer_size:int max_in_cpu:int pin_memory:bool",
    "zero_optimization.offload_optimizer": """
        device nvme_path buffer_count:int pin_memory:bool pipeline_read:bool pipeline_write:bool fast_init:bool ratio:number
        super_offload:bool cpuadam_cores_perc:number
    """,
    "zero_optimization.zenflow": """
        topk_ratio:number select_strategy select_interval update_interval overlap_step:bool offload:bool auto_ratio:number
        full_warm_up_rounds:int pt_reserved_cores_perc:number steps_per_epoch:int
    """,
    "zero_optimization.leaf_module": "classes names name_suffixes",
    "bf16": """
        enabled:bool immediate_grad_update:bool check_grad_overflow:bool bf16_master_weights_and_grads:bool bf16_optimizer_states:bool
    """,
    "fp16": """
        enabled:bool auto_cast:bool loss_scale:number initial_scale_power:int loss_scale_window:int hysteresis:int
        consecutive_hysteresis:bool min_loss_scale:int fp16_master_weights_and_grads:bool
    """,
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "activation_checkpointing": """
        partition_activations contiguous_memory_optimization cpu_checkpointing number_checkpoints profile synchronize_checkpoint_boundary
    """,
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "checkpoint": "tag_validation use_node_local_storage parallel_write checkpoint_serialization",
    "checkpoint.parallel_write": "pipeline_stage",
    "compile": """
        deepcompile:bool autoep_non_moe:bool free_activation:bool free_activation_threshold:int offload_activation:bool
        offload_activation_pin_memory:bool offload_opt_states:bool double_buffer:bool symmetric_memory:bool debug_log:bool
        offload_parameters:bool sync_before_reduce:bool sync_after_reduce:bool sync_before_allgather:bool sync_after_allgather:bool
        keep_int_input_tensors:bool keep_all_input_tensors:bool passes
    """,
    "comms_logger": "enabled:bool prof_all:bool prof_ops verbose:bool debug:bool",
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file",
    "timers": "throughput",
    "timers.throughput": "enabled:bool synchronized:bool",
    "tensorboard": "enabled:bool output_path job_name",
    "csv_monitor": "enabled:bool output_path job_name",
    "wandb": "enabled:bool group team project",
    "comet": """
        enabled:bool samples_log_interval:int project workspace api_key experiment_name experiment_key online:bool mode
    """,
}

# Section -> key -> kind ("" where DeepSpeed names none).
KEYS: dict[str, dict[str, str]] = {
    section: {word.partition(":")[0]: word.partition(":")[2] for word in words.split()}
    for section, words in _KEYS.items()
}

# Known to DeepSpeed, but they would change more than the memory layout; and why.
_PARALLEL = "every process of this launcher takes its own share of the global batch"
NOT_TAKEN = {
    **dict.fromkeys(("tensor_parallel", "expert_parallel", "use_data_before_expert_parallelism"), _PARALLEL),
    **dict.fromkeys(("pipeline", "sequence_parallel_size", "data_parallel_size"), _PARALLEL),
    **dict.fromkeys(
        ("data_efficiency", "dataloader_drop_last"), "which rows are read, and in what order, is the launcher's"
    ),
    "managed_gradient_accumulation": "accumulation follows from --global_batch_size",
    "gradient_allreduce_op": "gradients are averaged; a sum would multiply the learning rate by the number of processes",
    "torch_autocast": "precision belongs to --bf16 and --fp16",
    "autotuning": "it starts runs of its own; compare layouts with `python -m drive_vlm plan`",
    "hybrid_engine": "generation does not go through DeepSpeed's inference engine",
    "weight_quantization": "it is for inference; train on quantized weights with LoRA",
    "datastates_ckpt": "a checkpoint must be on disk before it is marked complete",
    "checkpoint.writer": "a checkpoint must be on disk before it is marked complete",
    "checkpoint.load_universal": "--resume decides it",
    "zero_optimization.legacy_stage1": "DeepSpeed refuses it since 0.5.9",
}

# Gone from DeepSpeed, which stops at them.
REMOVED = [
    "amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting", "nebula",
    "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
    "zero_optimization.mics_hierarchical_params_gather", "zero_optimization.mics_shard_size", "zero_optimization.zeropp_loco_param",
]  # fmt: skip

# Old spellings, and what to write: DeepSpeed still translates them, but transformers does not see them.
DEPRECATED = {
    "bfloat16": "bf16",
    "zero_optimization.cpu_offload": "offload_optimizer",
    "zero_optimization.cpu_offload_param": "offload_param",
    "zero_optimization.cpu_offload_use_pin_memory": "offload_param or offload_optimizer",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}
