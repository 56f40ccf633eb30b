"""The plan's memory model next to real training: predicted and measured bytes of one process, through sft or grpo.

Each case of sft trains three optimizer steps of a random InternVL in processes of its own. Before step 3 the memory that stays
(weights, master copy, optimizer states) is read; during step 3 the peak. On a GPU both are torch.cuda's allocated bytes.
On a CPU the first is the sum of all tensor storages, the second adds the largest sum of allocations that torch's
profiler saw. The prediction is drive_vlm.plan's for the very batch that step 3 had (rows, tokens, tiles, labels).
On a CPU stand next to them: "resident", the most that the process kept resident in steps 1 and 2 (RSS, libraries and all), and
"together", what it and its loader processes hold between steps 2 and 3 (what they share counts once).
Each case of grpo runs two steps on a CPU. Step 2, its last, is measured in each phase apart: while it samples, scores and learns.
On a CPU the model has some 50 M weights. On a GPU the cases are InternVL3-1B at full size, and Qwen3-4B with LoRA behind
its tower, with random weights from drive_vlm/models/architectures.
"""

import json
import sys
from pathlib import Path
from typing import Any

import measure
from bench_plan_probe import PHASES, measure_grpo, measure_sft

from drive_vlm.config import CommandParser
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/bench/bench_plan.py --json runs/bench_plan.json
python tools/bench/bench_plan.py --cases one_process zero2_2ranks
python tools/bench/bench_plan.py --stage grpo --cases lora zero2_2ranks
"""
_ZERO = {"overlap_comm": False, "contiguous_gradients": True, "reduce_bucket_size": 4000000}
_ZERO3 = {
    "stage3_prefetch_bucket_size": 2000000,
    "stage3_param_persistence_threshold": 10000,
    "stage3_max_live_parameters": 4000000,
    "stage3_max_reuse_distance": 4000000,
    "stage3_gather_16bit_weights_on_model_save": True,
}
_LORA = ["--lora_rank", "16"]
_CKPT = ["--gradient_checkpointing", "true"]
# name -> (ranks, layout, flags)
CPU_CASES: dict[str, tuple[int, str, list[str]]] = {
    "one_process": (1, "ddp", []),
    "one_process_checkpointing": (1, "ddp", _CKPT),
    "one_process_trained_tower": (1, "ddp", ["--freeze", "projector"]),
    "one_process_accumulation": (1, "ddp", ["--global_batch_size", "4"]),
    "zero1_2ranks": (2, "zero1", []),
    "zero2_2ranks": (2, "zero2", []),
    "zero2_2ranks_checkpointing": (2, "zero2", _CKPT),
    "zero2_2ranks_bf16": (2, "zero2", ["--bf16", "true"]),
    "zero2_2ranks_accumulation": (2, "zero2", ["--global_batch_size", "6", "--per_device_train_batch_size", "1"]),
    "zero2_loaders": (1, "zero2", ["--dataloader_num_workers", "2"]),
    "zero2_lora": (1, "zero2", _LORA),
    "zero2_lora_checkpointing": (1, "zero2", [*_LORA, *_CKPT]),
    "zero3_1rank": (1, "zero3", []),
    "zero3_2ranks": (2, "zero3", []),
    "zero3_2ranks_checkpointing": (2, "zero3", _CKPT),
    "zero3_2ranks_bf16": (2, "zero3", ["--bf16", "true"]),
}
GPU_CASES: dict[str, tuple[int, str, list[str]]] = {
    "internvl3_1b_zero1": (1, "zero1", ["--bf16", "true"]),
    "internvl3_1b_zero2_checkpointing": (1, "zero2", ["--bf16", "true", *_CKPT]),
    "internvl3_1b_ddp_checkpointing": (1, "ddp", ["--bf16", "true", *_CKPT]),
    "qwen3_4b_lora_zero2_checkpointing": (1, "zero2", ["--bf16", "true", "--lora_rank", "32", *_CKPT]),
}

GRPO_CASES: dict[str, tuple[int, str, list[str]]] = {
    "one_process": (1, "ddp", []),
    "one_process_checkpointing": (1, "ddp", _CKPT),
    "one_process_bf16": (1, "ddp", ["--bf16", "true"]),
    "lora": (1, "ddp", [*_LORA, *_CKPT]),
    "zero2_lora_bf16": (1, "zero2", [*_LORA, "--bf16", "true", *_CKPT]),
    "zero2_2ranks": (2, "zero2", []),
    "zero3_2ranks": (2, "zero3", []),
    "zero3_2ranks_sampling_from_shards": (2, "zero3", ["--ds3_gather_for_generation", "false"]),
}
_REWARD = """
def build():
    def length_reward(prompts, completions, **columns):
        return [float(i % 2) for i in range(len(completions))]
    return length_reward
"""
NUMBERS = {
    "hidden_size": (512, 1, "width of the CPU model"),
    "micro_batch": (2, 1, "sft: packs of a micro batch; grpo: its completions"),
    "completion": (128, 1, "grpo: tokens of a completion at most"),
    "completions": (16, 1, "grpo: completions of a generation batch, in groups of 4"),
}


def make_parser() -> CommandParser:
    parser = measure.bench_parser("bench_plan", __doc__, EXAMPLES, NUMBERS)
    parser.add_argument(
        "--stage", choices=("sft", "grpo"), default="sft", help="command to measure; grpo on a CPU only"
    )
    parser.add_argument("--cases", nargs="+", help="cases to run (default: all of this stage and device)")
    parser.add_argument("--max_length", type=int, help="tokens of a pack (default: 512 on a CPU, 4096 on a GPU)")
    return parser


def prepare_models(work: Path, hidden_size: int, cuda: bool) -> dict[str, Path]:
    """Data, layouts and models in `work`; {model name: directory}."""
    corpus = measure.build_synthetic(work, scenes=60, size=112, workers=1) / "train.jsonl"
    for stage in (1, 2, 3):
        zero = {"zero_optimization": {"stage": stage, **_ZERO, **(_ZERO3 if stage == 3 else {})}}
        (work / f"zero{stage}.json").write_text(json.dumps(zero))
    if cuda:
        return {name: random_model(work / name, corpus, name) for name in ("internvl3_1b", "qwen3_4b")}
    sizes = {"image_size": 112, "patch_size": 14, "hidden_size": hidden_size, "vision_layers": 6, "text_layers": 8}
    return {"small": measure.build_tiny(work, "small", corpus, **sizes)}


def random_model(out: Path, corpus: Path, name: str) -> Path:
    """A full-size InternVL with random bf16 weights: InternVL3-1B, or its tower with Qwen3-4B behind it."""
    import torch
    from transformers import AutoConfig, AutoProcessor, InternVLConfig, InternVLForConditionalGeneration

    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.models.tiny.tiny import build_tiny_internvl, corpus_of
    from drive_vlm.plan.model_sizes import shipped

    tiny = build_tiny_internvl(
        out.with_name(f"{name}_parts"), corpus_of(JsonlFile(corpus)), image_size=448, patch_size=14, max_tiles=1
    )
    processor = AutoProcessor.from_pretrained(tiny)
    internvl = shipped("internvl3_1b")[1]["config"]
    text = (internvl if name == "internvl3_1b" else shipped("siglip2_qwen3_4b")[1]["config"])["text_config"]
    tied = text["tie_word_embeddings"]
    vision = {key: value for key, value in internvl["vision_config"].items() if key != "model_type"}
    config = InternVLConfig(
        vision_config=vision,
        text_config=AutoConfig.for_model(**text).to_dict(),
        image_token_id=processor.image_token_id,
        image_seq_length=256,
        downsample_ratio=0.5,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model: Any = InternVLForConditionalGeneration(config)
        model.to(torch.bfloat16)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def words_of(work: Path, model: Path, args: Any, layout: str, more: list[str], cuda: bool) -> list[str]:
    """The flags of a case but for --output_dir."""
    own = {
        "sft": {"packing": True, "max_length": args.max_length, "max_steps": 3},
        "grpo": {
            "max_length": 512,
            "max_steps": 2,
            "num_generations": 4,
            "global_batch_size": args.completions,
            "max_completion_length": args.completion,
            "rewards": f"{work / 'reward.py'}:build",
            "sample_steps": 0,
        },
    }
    values = {
        "model": model,
        "data": work / "data" / "train.jsonl",
        "per_device_train_batch_size": args.micro_batch,
        **own[args.stage],
        **measure.TRAINING,
        **({} if cuda else {"use_cpu": True}),
        **({} if layout == "ddp" else {"deepspeed": work / f"{layout}.json"}),
        **({} if "--freeze" in more else {"freeze": "vision_tower"}),
    }
    return [*measure.flags(values), *more]


def run_case(stage: str, work: Path, name: str, ranks: int, words: list[str]) -> dict[str, Any]:
    """Train `words` in a process of its own, predict the same, compare. Raises ValueError when the run fails."""
    out = work / f"{name}.json"
    ranked = measure.torchrun(ranks) if ranks > 1 else [sys.executable]
    command = [*ranked, __file__, "--child", stage, out, *words, "--output_dir", work / name]
    measure.start(command, work / f"{name}.log", measure.environment(work))
    found = json.loads(out.read_text())
    measured = {"static": found["static"], **{name or PEAKS[stage][-1]: size for name, size in found["peak"].items()}}
    predicted = predict(stage, [*words, "--world_size", str(ranks)], found["batch"])
    measured |= {key: found[key] for key in RESIDENT if key in predicted}
    error = {key: predicted[key] / measured[key] - 1 for key in measured}
    return {
        "case": name,
        "batch": found["batch"],
        "measured": measured,
        "predicted": predicted,
        "error": error,
    }


def predict(stage: str, words: list[str], batch: Any) -> dict[str, float]:
    """The plan's figures of a process for the `batch` of the last step: what stays between steps, each peak, RESIDENT on a CPU.

    Of sft a batch is [rows, tokens, tiles, labels], of grpo {"prompt", "completion", "tiles" of a row}. On a CPU TRL scores
    every position, not the completions' alone.
    """
    from dataclasses import replace

    from drive_vlm.launch.topology import accumulation_steps
    from drive_vlm.plan.activations import Batch
    from drive_vlm.plan.flags import parse
    from drive_vlm.plan.lookup import load_sizes
    from drive_vlm.plan.memory_table import PlanCase, layouts, peak_of
    from drive_vlm.plan.resident import resident, stored_bytes
    from drive_vlm.plan.rows import RowStatistics

    parsed = parse(stage, "", words, "")
    micro = int(parsed.training["per_device_train_batch_size"])
    if stage == "grpo":
        assert parsed.groups is not None
        parsed = replace(parsed, groups=replace(parsed.groups, length=batch["completion"]))
        tokens = batch["prompt"] + batch["completion"]
        shape = Batch(micro, tokens, round(micro * batch["tiles"]), micro * (tokens - 1))
    else:
        tokens, shape = batch[1], Batch(*batch)
    accumulation = accumulation_steps(parsed.run.global_batch_size, micro, parsed.plan.world_size)
    rows = RowStatistics(None, tokens, 0, 0, None, "", None)
    case = PlanCase(parsed, load_sizes(parsed.model), rows, accumulation)
    all_layouts, chosen = layouts(parsed)
    layout = next(item for item in reversed(all_layouts) if item.name == chosen)
    peak = peak_of(case, layout, shape, case.checkpointing())
    figures = {"static": peak.between_steps, **{name: getattr(peak, name) for name in PEAKS[stage]}}
    if stage == "sft" and parsed.training["use_cpu"]:
        kept = resident(case, layout, shape, stored_bytes(parsed.model.model), 1)
        # Between steps malloc keeps the blocks of the activations, which the next step takes again.
        rest = kept.libraries + kept.mapped + peak.between_steps + peak.activations
        figures |= {"resident": kept.process, "together": rest + kept.loaders}
    return figures


RESIDENT = ("resident", "together")
# What is measured of the last step of a stage: each phase, and at last what lies outside of all phases.
PEAKS = {"sft": ("peak",), "grpo": (*PHASES, "learning")}


def run(args: Any, work: Path) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available() and args.stage == "sft"
    cases = GRPO_CASES if args.stage == "grpo" else GPU_CASES if cuda else CPU_CASES
    if unknown := set(args.cases or ()) - set(cases):
        raise ValueError(f"--cases {' '.join(unknown)}: not known here. Cases: {', '.join(cases)}")
    args.max_length = args.max_length or (4096 if cuda else 512)
    (work / "reward.py").write_text(_REWARD)
    models = prepare_models(work, args.hidden_size, cuda)
    results = []
    for name in args.cases or cases:
        ranks, layout, more = cases[name]
        model = next((path for key, path in models.items() if name.startswith(key)), next(iter(models.values())))
        results.append(run_case(args.stage, work, name, ranks, words_of(work, model, args, layout, more, cuda)))
    return {"device": torch.cuda.get_device_name() if cuda else "CPU", "cases": results}


def show(result: dict[str, Any], args: Any) -> None:
    """Predicted and measured MiB and the error of what stays and of each phase."""
    columns = ("static", *PEAKS[args.stage], *(key for key in RESIDENT if key in result["cases"][0]["predicted"]))
    rows = []
    for row in result["cases"]:
        cells = []
        for key in columns:
            cells += [f"{row[side][key] / 2**20:,.1f}" for side in ("predicted", "measured")]
            cells.append(f"{row['error'][key]:.1%}")
        rows.append([row["case"], *cells])
    print_table(None, ("case", *(word for name in columns for word in (name, "measured", "error"))), rows, width=150)
    print("MiB of one process; error = predicted / measured - 1")


def child(words: list[str]) -> None:
    """Measure one run: WORDS are the stage, the file to write, and the run's own."""
    {"sft": measure_sft, "grpo": measure_grpo}[words[0]](Path(words[1]), words[2:])


if __name__ == "__main__":
    measure.run_bench(make_parser(), run, show, child=child)
