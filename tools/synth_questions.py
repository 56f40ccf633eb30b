"""Captions, objects and descriptions -> questions with answers, by task: a teacher writes them from a pool of seed questions.

Takes the lines of tools/synth_refine.py (or synth_caption.py) and adds to each
  "rows"    [{task, kind, question, answer, prompt_sha, ...}]; region rows with "region" {box, label}, suggestion rows with "reasoning"
            {objects, hazards, rule, action} apart from the answer, existence rows with "absent"
  "unread"  {"task: reason": count} of replies that are prose, break the form, refuse, were cut, or contradict the boxes; "given_up"
            {task: count} of questions whose every attempt was
Tasks and their shares (--tasks): general, region (a red rectangle marks an object), suggestion, and vqa, one fact a row: existence (1 of
5 about something that is not there), count, attribute, position, relation, rule. --names lists what may be asked for in vain: give
what your detector looks for, since what it cannot see is not absent. A teacher that is not sent the picture may name no color that the
caption does not have; --show_picture sends it, with the rectangle drawn for region questions. --preview 10 shows the rows of ten
pictures before the whole run, --estimate says what it takes, --max_cost stops before it costs more; a stopped run pays nothing twice.
"""

import re
from pathlib import Path
from typing import Any

from synth_paid import read_names, show_paid

from drive_vlm.builders.splits import parse_fractions
from drive_vlm.builders.synthesis.paid import paid_flags, run_paid
from drive_vlm.builders.synthesis.questions import SHARES, TASKS, QuestionRules, Questions
from drive_vlm.builders.synthesis.vqa import ClassesIn
from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening
from drive_vlm.rewards.text.vocabulary import load_vocabulary, plurals

EXAMPLES = """
python tools/synth_questions.py --data refined.jsonl --model Qwen/Qwen3-32B --base_url http://localhost:8000/v1 --out questions.jsonl --preview 10
python tools/synth_questions.py --data refined.jsonl --model Qwen/Qwen3-32B --base_url http://localhost:8000/v1 --names classes.txt --out questions.jsonl
python tools/synth_questions.py --data refined.jsonl --model big-vlm --show_picture --price_in 0.6 --price_out 2.4 --max_cost 20 --out questions.jsonl
python tools/synth_questions.py --data refined.jsonl --model m --tasks general:0.5 region:0.5 suggestion:0 vqa:0 --out questions.jsonl
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synth_questions.py", description=__doc__, examples=EXAMPLES)
    paid_flags(parser, "teacher", temperature=0.7, max_tokens=768)
    flag = parser.flag
    flag("--tasks", [f"{task}:{share}" for task, share in SHARES.items()], "TASK:SHARE of the rows; they sum to 1")
    flag("--rows_a_picture", 7.0, "rows of a picture, on average, where it has objects enough", 0.1, 100)
    parser.add_argument(
        "--names",
        type=Path,
        help="text file, a name a line: what may be asked for in vain (default: road users and signs of COCO's classes)",
    )
    flag("--absent_share", 0.2, "share of the existence questions that ask for what is not there", most=1)
    flag("--examples", 4, "seed questions that a prompt shows")
    flag("--min_area", 0.001, "share of the picture that an object must cover for a region question", most=1)
    flag("--show_picture", False, "send the picture to the teacher; without it the teacher reads texts alone")
    return parser


def class_finder() -> ClassesIn:
    """The classes of driving_words.yaml that a text names, by whole words; the longest phrase counts: a bus stop is no bus."""
    vocabulary = load_vocabulary()
    phrases = {
        form: term.classes
        for phrase, term in vocabulary.objects.items()
        for form in (phrase, *(" ".join([*phrase.split()[:-1], end]) for end in plurals(phrase.split()[-1])))
    }
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)")

    def classes_in(text: str) -> set[str]:
        return {name for match in pattern.finditer(text.lower()) for name in phrases[match[1]]}

    return classes_in


def run(args: Any) -> dict[str, Any] | None:
    """The audit, or the estimate. Raises ValueError."""
    shares = parse_fractions(args.tasks, "--tasks")
    if unknown := set(shares) - set(TASKS):
        raise ValueError(f"--tasks {sorted(unknown)[0]}: not a task; of {', '.join(TASKS)}")
    prompts = args.teacher_prompts or Path(__file__).parent / "prompts" / "synthesis"
    names = read_names(args.names or Path(__file__).parent / "prompts" / "synthesis" / "names.txt")
    rules = QuestionRules(
        {task: shares.get(task, 0.0) for task in TASKS}, args.rows_a_picture, names, args.absent_share, args.examples, args.min_area,
        args.show_picture, args.seed, class_finder(),
    )  # fmt: skip
    return run_paid(Questions(prompts, rules), args)


if __name__ == "__main__":
    with listening():
        run_tool(make_parser(), run, show_paid)
