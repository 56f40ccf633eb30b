"""The plan of grpo next to a real run: predicted and measured bytes of one process while it samples, scores and learns.

Each case runs two steps of the grpo command with a random InternVL on a CPU, in processes of its own. Step 2 is measured as
in bench_plan.py: all tensor storages before it, and the largest sum of allocations that torch's profiler saw on top of that,
here in each phase apart. The prediction is drive_vlm.plan's for the very batch that step 2 had.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from bench_plan import main, planned, prepare_models, print_errors, run_case
from bench_plan_probe import measure_stage

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
NUMBERS = {
    "hidden_size": (512, "width of the model"),
    "completion": (128, "tokens of a completion at most"),
    "completions": (16, "completions of a generation batch, in groups of 4"),
}
_REWARD = """
def build():
    def length_reward(prompts, completions, **columns):
        return [float(i % 2) for i in range(len(completions))]
    return length_reward
"""


def make_parser() -> CommandParser:
    parser = measure.bench_parser("bench_plan_grpo", __doc__, EXAMPLES, NUMBERS)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES), help="cases to run")
    return parser


def measure_child(out: Path, words: list[str]) -> None:
    """Run grpo with `words` and write what step 2 took to `out` (rank 0)."""
    import torch

    found: dict[str, Any] = {}

    def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            # Learning calls the function of scoring as well, with gradients.
            if name == "scoring" and torch.is_grad_enabled():
                return call(*args, **kwargs)
            with torch.profiler.record_function(name) if "profiler" in found else contextlib.nullcontext():
                return call(*args, **kwargs)

        return inside

    def change(trainer: Any) -> None:
        trainer._generate = marked("sampling", trainer._generate)
        trainer._get_per_token_logps_and_entropies = marked("scoring", trainer._get_per_token_logps_and_entropies)
        score = trainer._generate_and_score_completions

        def generate_and_score(inputs: Any) -> Any:
            output = score(inputs)
            if trainer.state.global_step == 1:
                pictures = output["pictures"]
                found["batch"] = {
                    "prompt": output["prompt_ids"].shape[1],
                    "completion": output["completion_ids"].shape[1],
                    "tiles": sum(len(one.get("pixel_values", ())) for one in pictures) / len(pictures),
                }
            return output

        trainer._generate_and_score_completions = generate_and_score

    measure_stage(out, "grpo", words, found, change, PHASES[:2])


def grpo_words(work: Path, model: Path, args: Any, layout: str, more: list[str]) -> list[str]:
    values = {
        "model": model,
        "data": work / "data" / "train.jsonl",
        "freeze": "vision_tower",
        "max_length": 512,
        "num_generations": 4,
        "per_device_train_batch_size": 2,
        "global_batch_size": args.completions,
        "max_completion_length": args.completion,
        "rewards": f"{work / 'reward.py'}:build",
        "max_steps": 2,
        "use_cpu": True,
        "sample_steps": 0,
        **measure.TRAINING,
        **({} if layout == "ddp" else {"deepspeed": work / f"{layout}.json"}),
    }
    return [*measure.flags(values), *more]


def predict(words: list[str], batch: dict[str, Any]) -> dict[str, float]:
    """The plan's figures for a batch of these prompts and completions. On a CPU TRL scores every position, not the completions' alone."""
    from drive_vlm.plan.activations import Batch

    tokens = batch["prompt"] + batch["completion"]

    def passing(micro: int) -> Batch:
        return Batch(micro, tokens, round(micro * batch["tiles"]), micro * (tokens - 1))

    peak = planned("grpo", words, tokens, passing, length=batch["completion"])
    return {"static": peak.between_steps, **{phase: getattr(peak, phase) for phase in PHASES}}


def run(args: Any, work: Path) -> dict[str, Any]:
    (work / "reward.py").write_text(_REWARD)
    model = prepare_models(work, args.hidden_size, cuda=False)["small"]
    results = []
    for name in args.cases:
        ranks, layout, more = CASES[name]
        words = grpo_words(work, model, args, layout, more)
        results.append(run_case(__file__, work, name, ranks, words, predict, rest_is="learning"))
    return {"cases": results}


def show(result: dict[str, Any], args: Any) -> None:
    print_errors(result["cases"], ("static", *PHASES))


if __name__ == "__main__":
    main(measure_child, lambda: measure.run_bench(make_parser(), run, show))
