"""python -m drive_vlm COMMAND: the commands, each loaded when it is called."""

import importlib
import sys
import warnings

from drive_vlm import stages

# Deprecation warnings raised inside other libraries: peft 0.21 and TRL 1.16 call the first in transformers 5.23, DeepSpeed
# 0.19 the others in torch. Every rank would print them, and users cannot act on them.
BETWEEN_LIBRARIES = (
    "`(is_gradient_checkpointing|gradient_checkpointing_(en|dis)able)` is deprecated",
    "`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
)
# Next to the training stages (drive_vlm/stages/__init__.py): name -> ("module:function", which takes the words after the
# name; one line of help).
COMMANDS = {
    "stages": ("drive_vlm.stages:main", "the names of the training commands above, one a line"),
    "reference": (
        "drive_vlm.stages.preference.reference:main",
        "log-probabilities of pairs under a frozen reference, for dpo and spin",
    ),
    "generate": ("drive_vlm.generate:main", "answers of a model for the rows of a file"),
    "report": (
        "drive_vlm.report.command:main",
        "one HTML page of runs: verdict, curves, scores, rows with pictures, faults",
    ),
    "plan": ("drive_vlm.plan.command:main", "memory, time and disk of a run before it runs; no GPU, no weights"),
    "merge": ("drive_vlm.merge:main", "one plain model directory from a LoRA or ZeRO checkpoint"),
    "doctor": ("drive_vlm.doctor:main", "what this machine offers a run, and what would break one"),
    "reproduce": ("drive_vlm.reproduce:main", "the command of a run again, after saying what differs now"),
}


def usage() -> str:
    """The list of commands."""
    helps = {name: stage.help for name, stage in stages.STAGES.items()} | {
        name: text for name, (_, text) in COMMANDS.items()
    }
    lines = [f"  {name:<10} {text}" for name, text in helps.items()]
    return (
        "usage: python -m drive_vlm COMMAND [flags]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nEach command has its own --help."
    )


def run(name: str, words: list[str]) -> None:
    """Run one command, a stage or another one, in this process."""
    if name in stages.STAGES:
        stages.run(name, words)
        return
    module, _, function = COMMANDS[name][0].partition(":")
    getattr(importlib.import_module(module), function)(words)


def main() -> None:
    """Read the command line of this process and run its command."""
    # The deepspeed launcher puts --local_rank=N before everything; LOCAL_RANK in the environment says the same.
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] == "--version":
        from drive_vlm import __version__

        print(__version__)
        return
    known = [*stages.STAGES, *COMMANDS]
    if words[0] not in known:
        from drive_vlm.config import nearest

        sys.exit(f"drive_vlm: unknown command {words[0]!r}.{nearest(words[0], known)}\n\n{usage()}")
    for text in BETWEEN_LIBRARIES:
        warnings.filterwarnings("ignore", text, FutureWarning)
    run(words[0], words[1:])


if __name__ == "__main__":
    main()
