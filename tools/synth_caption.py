"""Pictures -> captions by a vision-language model: one on any OpenAI-compatible server, or one of ours in this process (Model^i).

Takes rows, folders of pictures, or the lines of an earlier step, and adds to each
  "caption_raw"    the caption; "" where no attempt gave one, with the reason in "refused": no_answer, refusal, cut_off, too_short ...
  "finish_reason", "model", "prompt_sha", "calls", "tokens", "cost"
--with_objects lists in the prompt what tools/synth_retrieve.py has named (or what synth_detect.py has found). Replies are kept in
OUT.replies as they come: the same command after a stop pays nothing twice. --preview 10 shows ten captions before the whole run,
--estimate says what it takes, --max_cost stops before it costs more.
"""

from pathlib import Path
from typing import Any

from synth_paid import show_paid

from drive_vlm.builders.synthesis.captions import Captions
from drive_vlm.builders.synthesis.paid import paid_flags, run_paid
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening

EXAMPLES = """
python tools/synth_caption.py --data described.jsonl --with_objects --model my-vlm --base_url http://localhost:8000/v1 --out captions.jsonl --preview 10
python tools/synth_caption.py --data described.jsonl --with_objects --model my-vlm --base_url http://localhost:8000/v1 --out captions.jsonl
python tools/synth_caption.py --data data/pictures --backend hf --model runs/round_1 --out captions.jsonl
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_caption.py", description=__doc__, examples=EXAMPLES)
    paid_flags(parser, "captioner", temperature=0.0, max_tokens=512)
    parser.flag("--with_objects", False, "list the named objects in the prompt")
    parser.flag("--words", [8, 300], "length of a caption", least=1, nargs=2, metavar=("MIN", "MAX"))
    return parser


def run(args: Any) -> dict[str, Any] | None:
    """The audit, or the estimate. Raises ValueError."""
    least, most = args.words
    if least > most:
        raise ValueError(f"--words {least} {most}: give MIN and MAX with MIN <= MAX")
    prompts = args.prompts or Path(__file__).parent / "prompts" / "synthesis"
    return run_paid(Captions(args.model, prompts, (least, most), args.with_objects), args)


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show_paid)
