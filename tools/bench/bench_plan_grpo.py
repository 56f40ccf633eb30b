"""The plan of grpo beside a real run: predicted and measured bytes of one process while it samples, scores and learns.

Each case runs two steps of the grpo command with a random InternVL on a CPU, in processes of its own. Step 2 is measured as
in bench_plan.py: all tensor storages before it, and the largest sum of allocations that torch's profiler saw on top of that,
here in each phase apart. The prediction is drive_vlm.plan's for the very batch that step 2 had.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_plan import prepare
from bench_plan_probe import largest_sums, storages

from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/bench/bench_plan_grpo.py --json runs/bench_plan_grpo.json
python tools/bench/bench_plan_grpo.py --cases lora zero2_2ranks
"""
PHASES = ("sampling", "scoring", "learning")
_CKPT = ["--gradient_checkpointing", "true"]
# name -> (ranks, layout, flags)
CASES: dict[str, tuple[int, str, list[str]]] = {
    "one_process": (1, "ddp", []),
    "one_process_checkpointing": (1, "ddp", _CKPT),
    "one_process_bf16": (1, "ddp", ["--bf16", "true"]),
    "lora": (1, "ddp", ["--lora_rank", "16", *_CKPT]),
    "zero2_lora_bf16": (1, "zero2", ["--lora_rank", "16", "--bf16", "true", *_CKPT]),
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


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_plan_grpo.py", description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--cases", nargs="+", choices=tuple(CASES), default=list(CASES), help="cases to run")
    add("--hidden_size", type=int, default=512, help="width of the model")
    add("--completion", type=int, default=128, help="tokens of a completion at most")
    add("--completions", type=int, default=16, help="completions of a generation batch, in groups of 4")
    add("--work", type=Path, help="folder to keep data, models and logs (default: a temporary one)")
    add("--json", type=Path, help="write the measurement to this file")
    add("--child", type=Path, help="measure one run and write it to this file; the tool starts this itself")
    return parser


def measure_child(out: Path, words: list[str]) -> None:
    """Run grpo with `words` and write what step 2 took to `out` (rank 0)."""
    import torch
    from transformers import TrainerCallback

    from drive_vlm import stages
    from drive_vlm.stages.rl import grpo

    found: dict[str, Any] = {}
    running: dict[str, Any] = {}

    class Meter(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                gc.collect()
                found["static"] = storages()
                running["profiler"] = torch.profiler.profile(profile_memory=True)
                running["profiler"].__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                profiler = running.pop("profiler")
                profiler.__exit__(None, None, None)
                sums = largest_sums(profiler, PHASES[:2])
                found["peak"] = {name or PHASES[2]: found["static"] + size for name, size in sums.items()}

    def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            if name == "scoring" and torch.is_grad_enabled():  # the same function, while learning
                return call(*args, **kwargs)
            with torch.profiler.record_function(name) if "profiler" in running else contextlib.nullcontext():
                return call(*args, **kwargs)

        return inside

    build = grpo.build_trainer

    def build_metered(*args: Any) -> Any:
        trainer = build(*args)
        trainer.add_callback(Meter())
        trainer._generate = marked("sampling", trainer._generate)
        trainer._get_per_token_logps_and_entropies = marked("scoring", trainer._get_per_token_logps_and_entropies)
        score = trainer._generate_and_score_completions

        def generate_and_score(inputs: Any) -> Any:
            output = score(inputs)
            if trainer.state.global_step == 1:
                found["batch"] = {
                    "prompt": output["prompt_ids"].shape[1],
                    "completion": output["completion_ids"].shape[1],
                    "tiles": sum(len(one.get("pixel_values", ())) for one in output["pictures"])
                    / len(output["pictures"]),
                }
            return output

        trainer._generate_and_score_completions = generate_and_score
        return trainer

    setattr(grpo, "build_trainer", build_metered)  # noqa: B010 - a stage has no hook for this, and needs none
    stages.run("grpo", words)
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps(found))


def grpo_words(work: Path, model: Path, args: Any, layout: str, flags: list[str]) -> list[str]:
    words = ["--model", model, "--data", work / "data" / "train.jsonl", "--freeze", "vision_tower", "--max_length", 512]
    words += ["--num_generations", 4, "--per_device_train_batch_size", 2, "--global_batch_size", args.completions]
    words += ["--max_completion_length", args.completion, "--rewards", f"{work / 'reward.py'}:build", "--max_steps", 2]
    words += ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--optim", "adamw_torch"]
    words += ["--use_cpu", "true", "--sample_steps", 0]
    words += [] if layout == "ddp" else ["--deepspeed", work / f"{layout}.json"]
    return [str(word) for word in [*words, *flags]]


def run_case(work: Path, name: str, model: Path, args: Any) -> dict[str, Any]:
    """Run, measure, predict. Raises ValueError with the end of the log when the run fails."""
    ranks, layout, flags = CASES[name]
    words = grpo_words(work, model, args, layout, flags)
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
    real = {"static": measured["static"], **measured["peak"]}
    error = {key: predicted[key] / real[key] - 1 for key in real}
    return {"case": name, "batch": measured["batch"], "measured": real, "predicted": predicted, "error": error}


def predict(words: list[str], batch: dict[str, Any]) -> dict[str, float]:
    """The plan's figures for a batch of these prompts and completions. On a CPU TRL scores every position, not the completions' alone."""
    import dataclasses

    from drive_vlm.launch.topology import accumulation_steps
    from drive_vlm.plan.activations import Batch
    from drive_vlm.plan.flags import parse
    from drive_vlm.plan.memory_table import PlanCase, layouts, peak_of
    from drive_vlm.plan.model_sizes import load_sizes
    from drive_vlm.plan.rows import RowStatistics

    flags = parse("grpo", "", words, "")
    assert flags.groups is not None
    flags = dataclasses.replace(flags, groups=dataclasses.replace(flags.groups, length=batch["completion"]))
    micro, tokens = int(flags.training["per_device_train_batch_size"]), batch["prompt"] + batch["completion"]
    accumulation = accumulation_steps(flags.run.global_batch_size, micro, flags.plan.world_size)
    case = PlanCase(flags, load_sizes(flags.model), RowStatistics(None, tokens, 0, 0, None, "", None), accumulation)
    all_layouts, chosen = layouts(flags)
    layout = next(item for item in reversed(all_layouts) if item.name == chosen)
    passing = Batch(micro, tokens, round(micro * batch["tiles"]), micro * (tokens - 1))
    peak: Any = peak_of(case, layout, passing, case.checkpointing())
    return {"static": peak.between_steps, **{phase: getattr(peak, phase) for phase in PHASES}}


def print_table(results: list[dict[str, Any]]) -> None:
    names = ("static", *PHASES)
    print(f"{'case':<36}" + "".join(f"{name:>12}{'measured':>10}{'error':>8}" for name in names))
    for row in results:
        cells = (
            f"{row['predicted'][name] / 2**20:>12,.1f}{row['measured'][name] / 2**20:>10,.1f}{row['error'][name]:>8.1%}"
            for name in names
        )
        print(f"{row['case']:<36}" + "".join(cells), flush=True)
    print("MiB of one process; error = predicted / measured - 1")


@contextlib.contextmanager
def working(folder: Path | None) -> Iterator[Path]:
    """`folder`, made where it is not there, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        work = (folder or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        yield work


def main() -> None:
    if "--child" in sys.argv:
        place = sys.argv.index("--child")
        measure_child(Path(sys.argv[place + 1]), sys.argv[place + 2 :])
        return
    parser = make_parser()
    args = parser.parse_args()
    from drive_vlm.launch.manifest import machine, versions

    with working(args.work) as work:
        (work / "reward.py").write_text(_REWARD)
        model = prepare(work, args, cuda=False)["small"]
        try:
            results = [run_case(work, name, model, args) for name in args.cases]
        except ValueError as error:
            parser.error(str(error))
    print_table(results)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "versions": versions(), "cases": results}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
