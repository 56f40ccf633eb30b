"""python -m drive_vlm COMMAND: the commands, each loaded when it is called."""

import importlib
import sys
import warnings

# What peft 0.21 and TRL 1.16 call in transformers, and DeepSpeed 0.19 in torch: told on every rank, and nothing that a user could mend.
BETWEEN_LIBRARIES = (
    "`(is_gradient_checkpointing|gradient_checkpointing_(en|dis)able)` is deprecated",
    "`torch.distributed.all_gather_into_tensor` is deprecated",
)
COMMANDS = {
    "sft": ("drive_vlm.stages.sft:main", "supervised fine-tuning of a driving VLM"),
    "grpo": ("drive_vlm.stages.rl.grpo:main", "reinforcement learning on rewards, held to the policy it began with"),
    "dpo": ("drive_vlm.stages.preference.stage:main_dpo", "preference training on pairs of answers"),
    "spin": (
        "drive_vlm.stages.preference.stage:main_spin",
        "self-play: the rejected answers are the model's own of the round before",
    ),
    "reference": (
        "drive_vlm.stages.preference.reference:main",
        "log-probabilities of pairs under a frozen reference, for dpo and spin",
    ),
    "generate": ("drive_vlm.generate:main", "answers of a model for the rows of a file"),
    "plan": ("drive_vlm.plan.command:main", "memory, time and disk of a run before it runs; no GPU, no weights"),
    "merge": ("drive_vlm.merge:main", "one plain model directory from a LoRA or ZeRO checkpoint"),
    "doctor": ("drive_vlm.doctor:main", "what this machine offers a run, and what would break one"),
    "reproduce": ("drive_vlm.reproduce:main", "the command of a run again, after saying what differs now"),
}


def usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: python -m drive_vlm COMMAND [flags]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nEach command has its own --help."
    )


def main() -> None:
    # The deepspeed launcher puts --local_rank=N before everything; LOCAL_RANK in the environment says the same.
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] == "--version":
        from drive_vlm import __version__

        print(__version__)
        return
    if words[0] not in COMMANDS:
        from drive_vlm.config import nearest

        sys.exit(f"drive_vlm: unknown command {words[0]!r}.{nearest(words[0], COMMANDS)}\n\n{usage()}")
    for text in BETWEEN_LIBRARIES:
        warnings.filterwarnings("ignore", text, FutureWarning)
    module, function = COMMANDS[words[0]][0].split(":")
    getattr(importlib.import_module(module), function)(words[1:])


if __name__ == "__main__":
    main()
