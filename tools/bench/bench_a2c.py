"""A step of a2c next to a step of TRL's GRPO, on the same model, prompts, number of completions and tokens at most.

Both run as commands, in turns, in processes of their own: `a2c`, and `grpo`, which is TRL's GRPOTrainer (its generation, its
loss) on the same prompts. Float32, a frozen vision tower, one pass over each rollout, a frozen copy of the model for the KL
term, the same threads. Rates run from the log of step 1, a warm-up, to that of the last step. A random model ends its texts now
and then, so that seconds are also given for 1,000 sampled tokens.
The default reward counts letters after every token: what the machinery of prefixes costs. --reward and --reward_flags measure
another one, such as clip.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import measure

EXAMPLES = """
python tools/bench/bench_a2c.py --json runs/bench_a2c.json
python tools/bench/bench_a2c.py --reward clip --reward_flags "--clip_model ViT-B-32 --clip_text whole" --tokens 64
"""
SIZES = ("image_size", "patch_size", "hidden_size", "vision_layers", "text_layers", "vocab_size")
NUMBERS = {
    "prompts": (4, 1, "prompts a step"),
    "generations": (4, 2, "completions of a prompt"),
    "micro_batch": (8, 1, "completions of a micro-batch"),
    "tokens": (32, 1, "tokens of a completion, at most"),
    "steps": (4, 3, "steps; the first is a warm-up"),
    "repeats": (2, 1, "runs of each side, in turns; the median counts"),
    "threads": (1, 1, "torch threads of both sides"),
    "hidden_size": (128, 1, "width of vision tower and language model"),
    "vision_layers": (2, 1, "layers of the vision tower"),
    "text_layers": (4, 1, "layers of the language model"),
    "vocab_size": (4000, 1, "tokens of the tokenizer, at most"),
    "image_size": (112, 1, "pixels of a picture's side; one tile each"),
    "patch_size": (7, 1, "pixels of a patch's side; 4 patches make a token"),
}
LETTERS = '''
class Letters:
    """The share of vowels, of each beginning of a text."""

    def __call__(self, prompts, completions, **columns):
        return [self.worth(completion[0]["content"]) for completion in completions]

    def prefixes(self, texts, **columns):
        return [[self.worth(text) for text in beginnings] for beginnings in texts]

    def worth(self, text):
        return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


def build():
    return Letters()
'''


def prepare(args: Any, work: Path) -> None:
    """Write rows with a picture each, the model, and the default reward. Raises ValueError for a batch that does not divide."""
    if args.prompts * args.generations % args.micro_batch:
        raise ValueError(
            f"--prompts {args.prompts} x --generations {args.generations} completions are not a multiple of --micro_batch {args.micro_batch}."
        )
    data = measure.build_synthetic(work, scenes=max(8, args.prompts * args.steps // 4), size=args.image_size)
    rows = [row for row in measure.json_lines(data / "train.jsonl") if isinstance(row.get("image"), str)]
    measure.write_json_lines(data / "prompts.jsonl", rows)
    measure.build_tiny(work, "model", data / "prompts.jsonl", **{name: getattr(args, name) for name in SIZES})
    (work / "letters.py").write_text(LETTERS)


def command(stage: str, args: Any, work: Path, out: Path) -> list[Any]:
    """The command line of one run; `stage` is a2c or grpo."""
    values = measure.TRAINING | {
        "model": work / "model",
        "data": work / "data" / "prompts.jsonl",
        "output_dir": out,
        "freeze": "vision_tower",
        "global_batch_size": args.prompts * args.generations,
        "per_device_train_batch_size": args.micro_batch,
        "num_generations": args.generations,
        "max_completion_length": args.tokens,
        "max_steps": args.steps,
        "logging_steps": args.steps,
        "logging_first_step": True,
        "learning_rate": 1e-6,
        "rewards": args.reward or f"{work / 'letters.py'}:build",
    }
    own = {"value_warmup_steps": 0, "kl_coef": 0.04} if stage == "a2c" else {"beta": 0.04, "bf16": False}
    words = measure.flags(values | own)
    return [sys.executable, "-m", "drive_vlm", stage, *words, *shlex.split(args.reward_flags)]


def figures(stage: str, args: Any, out: Path) -> dict[str, float]:
    """Of the steps after the first, from metrics.jsonl."""
    first, last = measure.logged(out)
    assert (first["step"], last["step"]) == (1, args.steps), "not the logs of the first and the last step"
    completions = args.prompts * args.generations
    seconds = completions / last["samples_per_second"]
    tokens = completions * last["completions/mean_length"]
    found = {
        "seconds_per_step": seconds,
        "samples_per_second": last["samples_per_second"],
        "sampled_tokens": tokens,
        "seconds_per_1000_tokens": 1000 * seconds / tokens,
    }
    reward = last["seconds/reward"] if stage == "a2c" else last["reward_seconds"]
    return found | {"reward_share": reward / seconds}


def run(args: Any, work: Path) -> dict[str, Any]:
    """Both sides in turns."""
    prepare(args, work)
    env = measure.environment(work, args.threads)

    def side(stage: str) -> Any:
        def timed(repeat: int) -> dict[str, float]:
            out = work / f"{stage}{repeat}"
            peak = measure.start(command(stage, args, work, out), out.with_suffix(".log"), env)["peak_rss_mb"]
            return figures(stage, args, out) | {"peak_rss_mb": peak}

        return timed

    sides = measure.compare(measure.in_turns({"a2c": side("a2c"), "grpo": side("grpo")}, args.repeats), "grpo")
    return {**sides, "parameters": measure.parameters(work / "model")}


def show(result: dict[str, Any], args: Any) -> None:
    columns = {
        "seconds_per_step": ("s a step", ".3f"),
        "samples_per_second": ("completions/s", ".1f"),
        "sampled_tokens": ("tokens sampled a step", ".0f"),
        "seconds_per_1000_tokens": ("s for 1,000 sampled", ".2f"),
        "reward_share": ("share of rewards", ".1%"),
        "peak_rss_mb": ("peak RSS MB", ".0f"),
    }
    title = f"{args.prompts} prompts x {args.generations} completions of up to {args.tokens} tokens a step"
    measure.print_sides(title, result, {"a2c": "drive-vlm a2c", "grpo": "TRL's GRPO (drive-vlm grpo)"}, columns)
    print(f"model: {result['parameters']:,} parameters,", ", ".join(f"{name} {getattr(args, name)}" for name in SIZES))
    ratio = result["a2c"]["ratio"]["seconds_per_1000_tokens"]
    print(f"a2c takes {ratio:.2f} times as long as TRL's GRPO for the same number of sampled tokens")


if __name__ == "__main__":
    parser = measure.bench_parser("bench_a2c", __doc__, EXAMPLES, NUMBERS)
    parser.add_argument("--reward", help="reward of both sides, by name or FILE.py:builder (default: letters)")
    parser.add_argument("--reward_flags", default="", help="its flags, as one word in quotes")
    measure.run_bench(parser, run, show)
