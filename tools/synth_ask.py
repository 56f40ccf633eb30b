"""Short questions by templates about named objects, answered by a model: questions and answers of a synthesis without a teacher.

Reads the lines of tools/synth_retrieve.py (or synth_detect.py). Of what the sources name it asks whether it is there, how many there
are and where, of some names that they lack whether they are there; the model answers from the picture alone. The lines are those of
tools/synth_questions.py, for tools/synth_gate.py, which compares the answers with the sources.
"""

from pathlib import Path
from typing import Any

from synth_paid import show_paid

from drive_vlm.builders.synthesis.paid import paid_flags, run_paid
from drive_vlm.builders.synthesis.short_questions import Ask
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening

EXAMPLES = """
python tools/synth_ask.py --data retrieve.jsonl --names car truck bus person --backend hf --model runs/sft --local_batch 64 --out ask.jsonl
python tools/synth_ask.py --data retrieve.jsonl --names names.txt --model my-vlm --base_url http://localhost:8000/v1 --out ask.jsonl
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_ask.py", description=__doc__, examples=EXAMPLES)
    paid_flags(parser, "answerer", temperature=0.0, max_tokens=32)
    parser.add_argument(
        "--names", nargs="+", required=True, help="what may be asked about: words, or a file with one a line"
    )
    for name, many, what in (
        ("present", 2, "whether something is there that is named"),
        ("absent", 2, "whether something is there that is not named"),
        ("count", 1, "how many"),
        ("position", 2, "where"),
    ):
        parser.flag(f"--{name}", many, f"questions about a picture that ask {what}, at most", least=0)
    return parser


def names_of(words: list[str]) -> list[str]:
    """Raises ValueError for a file without a name."""
    if len(words) == 1 and Path(words[0]).is_file():
        words = [line.strip() for line in Path(words[0]).read_text(encoding="utf-8").splitlines()]
    if not (names := [word for word in words if word]):
        raise ValueError(f"--names {' '.join(words)}: no name in it")
    return names


def run(args: Any) -> dict[str, Any] | None:
    """The audit, or the estimate. Raises ValueError."""
    counts = {name: getattr(args, name) for name in ("present", "absent", "count", "position")}
    return run_paid(Ask(names_of(args.names), counts, args.seed), args)


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show_paid)
