"""The plan's memory model beside real training: predicted and measured bytes of one process, through the sft command.

Each case trains three optimizer steps of a random InternVL in processes of its own. Before step 2 the memory that stays
(weights, master copy, optimizer states) is read; during step 2 the peak. On a GPU both are torch.cuda's allocated bytes.
On a CPU the first is the sum of all tensor storages, the second adds the largest sum of allocations that torch's
profiler saw; peak RSS less the RSS before the model was loaded stands beside them. The prediction is drive_vlm.plan's
for the very batch that step 2 had (rows, tokens, tiles, labels).
On a CPU the model has some 50 M weights. On a GPU the cases are InternVL3-1B at full size, and Qwen3-4B with LoRA behind
its tower, with random weights from drive_vlm/models/architectures.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_plan_probe import largest_sums, storages

from drive_vlm.config import CommandParser

TOOLS = Path(__file__).resolve().parents[1]

EXAMPLES = """
python tools/bench/bench_plan.py --json runs/bench_plan.json
python tools/bench/bench_plan.py --cases one_process zero2_2ranks
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


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_plan.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--cases", nargs="+", help="cases to run (default: all of this device)")
    add("--hidden_size", type=int, default=512, help="width of the CPU model")
    add("--max_length", type=int, help="tokens of a pack (default: 512 on a CPU, 4096 on a GPU)")
    add("--micro_batch", type=int, default=2, help="packs of a micro batch")
    add("--work", type=Path, help="folder to keep data, models and logs (default: a temporary one)")
    add("--json", type=Path, help="write the measurement to this file")
    add("--child", type=Path, help="measure one run and write it to this file; the tool starts this itself")
    return parser


# ---- the measured process


def measure_child(out: Path, words: list[str]) -> None:
    """Run sft with `words` and write what step 2 took to `out` (rank 0)."""
    import torch
    from transformers import TrainerCallback

    from drive_vlm import models, stages
    from drive_vlm.launch.manifest import peak_resident_bytes
    from drive_vlm.stages import sft

    found: dict[str, Any] = {}
    cuda, load = torch.cuda.is_available(), models.load_family

    def load_family(*args: Any, **kwargs: Any) -> Any:
        found["rss"] = -_resident()
        return load(*args, **kwargs)

    models.load_family = load_family

    class Meter(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step != 1:
                return
            gc.collect()
            found["static"] = torch.cuda.memory_allocated() if cuda else storages()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            else:
                found["profiler"] = torch.profiler.profile(profile_memory=True)
                found["profiler"].__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step != 2:
                return
            if cuda:
                found["peak"] = torch.cuda.max_memory_allocated()
            else:
                profiler = found.pop("profiler")
                profiler.__exit__(None, None, None)
                found["peak"] = found["static"] + largest_sums(profiler)[""]
            found["rss"] += peak_resident_bytes()

    build = sft.build_trainer

    def build_metered(*args: Any) -> Any:
        trainer = build(*args)
        trainer.add_callback(Meter())
        step = trainer.training_step

        def training_step(model: Any, inputs: dict[str, Any], *rest: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step == 1:
                rows, tokens = inputs["input_ids"].shape
                tiles = inputs["pixel_values"].shape[0] if inputs.get("pixel_values") is not None else 0
                found["batch"] = [rows, tokens, tiles, int((inputs["labels"] != -100).sum())]
            return step(model, inputs, *rest, **kwargs)

        trainer.training_step = training_step
        return trainer

    setattr(sft, "build_trainer", build_metered)  # noqa: B010 - a stage has no hook for this, and needs none
    stages.run("sft", words)
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps(found))


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the tool


def prepare(work: Path, args: Any, cuda: bool) -> dict[str, Path]:
    """Data, layouts and models in `work`; {model name: directory}."""
    data = work / "data"
    if not data.is_dir():
        tool = TOOLS / "build_synthetic.py"
        build = [
            sys.executable,
            tool,
            "--out",
            data,
            "--scenes",
            "60",
            "--size",
            "112",
            "--splits",
            "train:1",
            "--workers",
            "1",
        ]
        subprocess.run([str(word) for word in build], check=True, stdout=subprocess.DEVNULL)
    for stage in (1, 2, 3):
        zero = {"zero_optimization": {"stage": stage, **_ZERO, **(_ZERO3 if stage == 3 else {})}}
        (work / f"zero{stage}.json").write_text(json.dumps(zero))
    if cuda:
        return {name: random_model(work / name, data / "train.jsonl", name) for name in ("internvl3_1b", "qwen3_4b")}
    sizes = [
        "--image_size",
        "112",
        "--patch_size",
        "14",
        "--hidden_size",
        str(args.hidden_size),
        "--vision_layers",
        "6",
    ]
    sizes += [
        "--text_layers",
        "8",
        "--max_tiles",
        "1",
        "--corpus",
        str(data / "train.jsonl"),
        "--out",
        str(work / "small"),
    ]
    subprocess.run(
        [sys.executable, str(TOOLS / "build_tiny_model.py"), *sizes],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return {"small": work / "small"}


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


def sft_words(work: Path, model: Path, args: Any, layout: str, flags: list[str], cuda: bool) -> list[str]:
    words = ["--model", model, "--data", work / "data" / "train.jsonl", "--packing", "--max_length", args.max_length]
    words += [
        "--per_device_train_batch_size",
        args.micro_batch,
        "--max_steps",
        "3",
        "--save_strategy",
        "no",
        "--report_to",
        "none",
    ]
    words += ["--disable_tqdm", "true", "--optim", "adamw_torch", *([] if cuda else ["--use_cpu", "true"])]
    words += [] if layout == "ddp" else ["--deepspeed", work / f"{layout}.json"]
    words += [] if "--freeze" in flags else ["--freeze", "vision_tower"]
    return [str(word) for word in [*words, *flags]]


def run_case(
    work: Path, name: str, model: Path, args: Any, case: tuple[int, str, list[str]], cuda: bool
) -> dict[str, Any]:
    """Train, measure, predict. Raises ValueError with the end of the log when the run fails."""
    ranks, layout, flags = case
    words = sft_words(work, model, args, layout, flags, cuda)
    out, log = work / f"{name}.json", work / f"{name}.log"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *start, __file__, "--child", str(out), *words, "--output_dir", str(work / name)]
    env = os.environ | {
        "DRIVE_VLM_CACHE": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with open(log, "wb") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, check=False).returncode
    if code:
        raise ValueError(f"{name} ended with code {code}: {log.read_text(errors='replace')[-2000:]}")
    measured = json.loads(out.read_text())
    predicted = predict([*words, "--world_size", str(ranks)], measured["batch"])
    error = {key: predicted[key] / measured[key] - 1 for key in ("static", "peak")}
    return {"case": name, "batch": measured["batch"], "measured": measured, "predicted": predicted, "error": error}


def predict(words: list[str], batch: list[int]) -> dict[str, float]:
    """The plan's figures for `batch`: what stays between steps, and the peak."""
    from drive_vlm.launch.topology import accumulation_steps
    from drive_vlm.plan.activations import Batch
    from drive_vlm.plan.flags import parse
    from drive_vlm.plan.memory_table import PlanCase, layouts, peak_of
    from drive_vlm.plan.model_sizes import load_sizes
    from drive_vlm.plan.rows import RowStatistics

    flags = parse("sft", "", words, "")
    micro = int(flags.training["per_device_train_batch_size"])
    accumulation = accumulation_steps(flags.run.global_batch_size, micro, flags.plan.world_size)
    case = PlanCase(flags, load_sizes(flags.model), RowStatistics(None, batch[1], 0, 0, None, "", None), accumulation)
    all_layouts, chosen = layouts(flags)
    layout = next(item for item in reversed(all_layouts) if item.name == chosen)
    peak = peak_of(case, layout, Batch(*batch), case.checkpointing())
    return {"static": peak.between_steps, "peak": peak.peak}


def print_table(results: list[dict[str, Any]]) -> None:
    print(
        f"{'case':<34}{'static':>10}{'measured':>10}{'error':>8}{'peak':>10}{'measured':>10}{'error':>8}{'RSS grown':>11}"
    )
    for row in results:
        cells = [row["predicted"]["static"], row["measured"]["static"]]
        more = [row["predicted"]["peak"], row["measured"]["peak"]]
        line = (
            f"{row['case']:<34}"
            + "".join(f"{cell / 2**20:>10,.1f}" for cell in cells)
            + f"{row['error']['static']:>8.1%}"
        )
        line += "".join(f"{cell / 2**20:>10,.1f}" for cell in more) + f"{row['error']['peak']:>8.1%}"
        print(line + f"{row['measured']['rss'] / 2**20:>11,.1f}", flush=True)
    print("MiB of one process; error = predicted / measured - 1")


def main() -> None:
    if "--child" in sys.argv:
        place = sys.argv.index("--child")
        measure_child(Path(sys.argv[place + 1]), sys.argv[place + 2 :])
        return
    parser = make_parser()
    args = parser.parse_args()
    import torch

    from drive_vlm.launch.manifest import machine, versions

    cuda = torch.cuda.is_available()
    cases = GPU_CASES if cuda else CPU_CASES
    unknown = set(args.cases or ()) - set(cases)
    if unknown:
        parser.error(f"--cases {' '.join(unknown)}: not known here. Cases: {', '.join(cases)}")
    args.max_length = args.max_length or (4096 if cuda else 512)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        models = prepare(work, args, cuda)
        try:
            for name in args.cases or cases:
                model = next(
                    (path for key, path in models.items() if name.startswith(key)), next(iter(models.values()))
                )
                results.append(run_case(work, name, model, args, cases[name], cuda))
        except ValueError as error:
            parser.error(str(error))
    print_table(results)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        device = torch.cuda.get_device_name() if cuda else "CPU"
        args.json.write_text(
            json.dumps({"device": device, "machine": machine(), "versions": versions(), "cases": results}, indent=2)
            + "\n"
        )


if __name__ == "__main__":
    main()
