"""Captions of driving videos -> Drive-VLM's training rows: a teacher LLM rewrites each into a detailed ("Microscope") and a
concise ("Copilot") text.

Reads caption rows {video, caption}, ShareGPT4Video's {video_path, captions} and published rows {video, q, a}
(drive_vlm/builders/video_captions.py). Any OpenAI-compatible server can be the teacher. Writes to OUT
  split_entry_{train,test}.jsonl   stage 2: a row a video and mode, asked for by the mode's instruction; new_nouns names
                                   the nouns of the rewrite that its caption does not have
  raw_captions_{train,test}.jsonl  stage 1: the captions as they came
  *.meta.json                      each of these files as a source for --data, with the folder of videos as its root
  audit.json                       what was read, left out and why, sizes, new nouns, tokens, cost
  teacher_cache/                   each reply, kept as it comes: the same command after a stop asks only for the rest
An answer that is refused, cut off, of a wrong length, or that names too much the caption does not is asked for again with
another seed, --attempts times in all; then the row is left out and counted. Test videos are held out whole.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

from drive_vlm.builders.rewrites import clean, fault, words
from drive_vlm.builders.row_writer import RowWriter, meta_entry
from drive_vlm.builders.split_entry import Rewrite, audit_of, rows_of
from drive_vlm.builders.splits import held_out_groups
from drive_vlm.builders.video_captions import VideoCaption, read_video_captions
from drive_vlm.config import CommandParser, output_folder, plain, run_tool
from drive_vlm.data.table import audit_bad_rows
from drive_vlm.data.videos import MODES
from drive_vlm.judges.chat_client import ChatClient, ChatError, RefusedError, in_threads
from drive_vlm.judges.verdicts import Turns, fill, read_prompt
from drive_vlm.launch import stop
from drive_vlm.rewards.text.new_nouns import NounCheck
from drive_vlm.store.cache import write_json

EXAMPLES = """
python tools/build_bdd_captions.py --data captions.jsonl --image_root data/bdd100k --out data/drive_vlm --base_url http://localhost:8000/v1 --teacher Qwen/Qwen3-32B
python tools/build_bdd_captions.py --data captions.jsonl --image_root data/bdd100k --out data/drive_vlm --base_url https://api.example.com/v1 --teacher big-model --price_in 0.6 --price_out 2.4 --dry_run
"""
PROMPTS = {"detailed": "microscope.txt", "concise": "copilot.txt"}


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/build_bdd_captions.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", nargs="+", required=True, help="caption rows, JSONL")
    add("--image_root", required=True, help="folder that the rows' video paths start from; each video must be there")
    add("--out", type=output_folder, required=True, help="folder to write")
    add("--base_url", required=True, help="address of the teacher's server, e.g. http://localhost:8000/v1")
    add("--teacher", required=True, help="name of the teacher model at that server")
    flag("--api_key_env", "OPENAI_API_KEY", "environment variable that holds the server's key")
    add(
        "--teacher_prompts",
        type=Path,
        default=Path(__file__).parent / "prompts",
        help="folder of microscope.txt and copilot.txt",
    )
    add(
        "--cache",
        type=output_folder,
        help="folder of the teacher's replies (default: OUT/teacher_cache), kept by the teacher's name wherever it is served: "
        "another model of the same name needs another folder",
    )
    flag("--attempts", 3, "times a text is asked for, each with another seed", least=1)
    flag("--seed", 0, "seed of the first attempt, and of the choice of held-out videos")
    flag("--temperature", 0.7, "temperature of the teacher", least=0, most=2)
    flag("--max_tokens", 512, "tokens of a reply, at most", least=1)
    for mode, limits in (("detailed", [20, 400]), ("concise", [4, 60])):
        flag(f"--{mode}_words", limits, f"length of a {mode} text", least=1, nargs=2, metavar=("MIN", "MAX"))
    flag("--concise_ratio", 0.5, "words of the concise text for each of the detailed one, at most", 0.01, 0.99)
    flag("--max_new_nouns", 2, "nouns a text may have that its caption has not; all are counted", least=0)
    flag("--spacy_model", "en_core_web_sm", "name or folder of the spaCy model that finds nouns")
    flag("--held_out", 40, "videos that go to the test files", least=0)
    flag("--on_bad_row", ("error", "skip"), "error: stop; skip: leave the row out, counted")
    flag("--limit", int, "take the first N usable captions only", least=1)
    flag("--workers", 8, "requests at a time", least=1)
    flag("--timeout", 120.0, "seconds that one request may take", 0.1, 86_400)
    flag("--max_retries", 4, "times a request is repeated after a fault of server or network", least=0)
    flag("--requests_per_minute", float, "rate limit (default: none)", 0.01, 1e6)
    flag("--price_in", float, "price of a million prompt tokens, for the cost", least=0)
    flag("--price_out", float, "price of a million reply tokens", least=0)
    flag("--dry_run", False, "show the prompts of the first caption, estimate tokens and cost; ask nobody")
    return parser


def messages(prompt: Turns, caption: VideoCaption) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in fill(prompt, {"caption": caption.caption})]


class Teacher:
    """Asks for both texts of a caption and checks them; threads share it."""

    def __init__(self, client: ChatClient, prompts: dict[str, Turns], nouns: NounCheck, args: Any) -> None:
        self.client, self.prompts, self.nouns, self.args = client, prompts, nouns, args

    def rewrite(self, caption: VideoCaption) -> dict[str, Rewrite]:
        """Both modes; the concise text is measured against the detailed one, or against the caption without it.

        Raises ChatError when the server cannot be asked any more, StopRequested between two requests.
        """
        detailed = self._ask("detailed", caption, self.args.detailed_words)
        longest = self.args.concise_ratio * words(detailed.text or caption.caption)
        return {"detailed": detailed, "concise": self._ask("concise", caption, self.args.concise_words, longest)}

    def _ask(self, mode: str, caption: VideoCaption, limits: list[int], longest: float = float("inf")) -> Rewrite:
        result, args = Rewrite(), self.args
        asked = messages(self.prompts[mode], caption)
        for seed in range(args.seed, args.seed + args.attempts):
            if result.reason:
                result.retries.append(result.reason)
            if wanted := stop.request(new=True):
                raise stop.StopRequested(wanted)
            try:
                reply = self.client.complete(asked, temperature=args.temperature, max_tokens=args.max_tokens, seed=seed)
            except RefusedError as error:
                result.reason, result.problem = "no_answer", str(error)
                continue
            result.prompt_tokens += reply.prompt_tokens
            result.reply_tokens += reply.completion_tokens
            text = clean(reply.text)
            result.new_nouns = self.nouns.new_nouns(caption.caption, text)
            result.reason = fault(text, reply.finish_reason, *limits) or self._judge(text, result.new_nouns, longest)
            if not result.reason:
                result.text = text
                break
        return result

    def _judge(self, text: str, new_nouns: list[str], longest: float) -> str:
        if words(text) > longest:
            return "not_shorter"
        return "new_nouns" if len(new_nouns) > self.args.max_new_nouns else ""


def ask_all(teacher: Teacher, captions: list[VideoCaption], workers: int) -> list[dict[str, Rewrite]]:
    """The rewrites in the order of the captions. The first ChatError, or a request to stop, ends it; what came before is in the
    cache."""
    asked = in_threads(teacher.rewrite, dict(enumerate(captions)), workers, "asking")
    found = {i: future.result() for i, future in asked}
    return [found[i] for i in range(len(captions))]


def write_files(out: Path, videos: str, files: dict[str, list[dict[str, Any]]]) -> None:
    """Each file whole or not at all, its meta file after it: one for each, so that none brings the rows of another stage or
    the test videos along. Empty files are not written, and nothing is left from an earlier run."""
    metas = {name: out / f"{name.removesuffix('.jsonl')}.meta.json" for name in files}
    with RowWriter(out) as writer:
        for name, rows in files.items():
            for path in (metas[name], out / name):
                path.unlink(missing_ok=True)
            if rows:
                writer.add(name, rows)
    for name, count in writer.counts.items():
        entry = meta_entry(str(Path(videos).resolve()), name, count)
        write_json(metas[name], {name.removesuffix(".jsonl"): entry})


def teacher_audit(client: ChatClient, rewrites: list[dict[str, Rewrite]], args: Any) -> dict[str, Any]:
    """Who was asked, how, and what it took: `tokens` of all answers that were read, `usage` and `cost` of this run alone."""
    asked = [rewrite for found in rewrites for rewrite in found.values()]
    return {
        "base_url": client.base_url,
        "model": client.model,
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "attempts": args.attempts,
        "prompts": {name: (args.teacher_prompts / name).read_text(encoding="utf-8") for name in PROMPTS.values()},
        "tokens": {"prompt": sum(r.prompt_tokens for r in asked), "reply": sum(r.reply_tokens for r in asked)},
        "usage": plain(client.usage),
        "cost": client.cost,
    }


def show_plan(client: ChatClient, prompts: dict[str, Turns], captions: list[VideoCaption], args: Any) -> None:
    """--dry_run: both requests about the first caption, then what all of them may take."""
    for mode in MODES:
        for message in messages(prompts[mode], captions[0]):
            print(f"--- {mode}, {message['role']} ({captions[0].where}) ---\n{message['content']}\n")
    letters = sum(len(m["content"]) for prompt in prompts.values() for c in captions for m in messages(prompt, c))
    requests = 2 * len(captions)
    client.usage.prompt_tokens, client.usage.completion_tokens = letters // 4, requests * args.max_tokens
    cost = "unknown (give --price_in and --price_out)" if client.cost is None else f"at most {client.cost:.2f}"
    print(
        f"{requests:,} requests, each answered at the first attempt: about {letters // 4:,} prompt tokens (4 letters a token), at "
        f"most {requests * args.max_tokens:,} reply tokens; cost {cost}"
    )


def build(args: Any) -> dict[str, Any] | None:
    """Ask, write, audit; returns the audit, None after --dry_run. Raises ValueError for what a user can fix."""
    for name in ("detailed_words", "concise_words"):
        least, most = getattr(args, name)
        if least > most:
            raise ValueError(f"--{name} {least} {most}: give MIN and MAX with MIN <= MAX")
    prompts = {mode: read_prompt(args.teacher_prompts / name, ["caption"]) for mode, name in PROMPTS.items()}
    cache = args.cache or args.out / "teacher_cache"
    client = ChatClient(
        args.base_url, args.teacher, args.api_key_env, cache, args.timeout, args.max_retries,
        args.requests_per_minute, args.price_in, args.price_out,
    )  # fmt: skip
    captions, bad = read_video_captions(args.data, args.image_root, args.on_bad_row, args.limit)
    if not captions:
        raise ValueError(
            f"{', '.join(args.data)}: no usable caption among {len(bad)} rows" + (f"; {bad[0]}" if bad else "")
        )
    try:
        held_out = held_out_groups([caption.group for caption in captions], args.held_out, args.seed)
    except ValueError as error:
        raise ValueError(f"--held_out: {error}") from error
    if args.dry_run:
        show_plan(client, prompts, captions, args)
        return None
    nouns = NounCheck(args.spacy_model)
    try:
        rewrites = ask_all(Teacher(client, prompts, nouns, args), captions, args.workers)
    except ChatError as error:
        done = client.usage.requests + client.usage.cached
        raise ValueError(f"{error}\n{done:,} replies are in {cache}: the same command goes on from there") from error
    files = rows_of(captions, rewrites, held_out)
    write_files(args.out, args.image_root, files)
    audit = audit_of(captions, rewrites, files)
    audit["inputs"] = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in args.data}
    audit["bad_rows"] = audit_bad_rows(bad)
    audit["teacher"] = teacher_audit(client, rewrites, args)
    write_json(args.out / "audit.json", audit)
    problems = (rewrite.problem for found in rewrites for rewrite in found.values() if rewrite.problem)
    return audit | {"problem": next(problems, "")}


def show(audit: dict[str, Any], args: Any) -> str | int:
    """Print what was written, left out and spent; return the exit status: 1 when no row was written or the splits leak."""
    for name, count in audit["rows"].items():
        print(f"{args.out / name}: {count:,} rows")
    for mode, entry in audit["modes"].items():
        left_out = ", ".join(f"{lost['count']} {reason}" for reason, lost in entry["left_out"].items())
        again = ", ".join(f"{count} {reason}" for reason, count in entry["asked_again"].items())
        nouns = entry["new_nouns"]
        print(
            f"{mode}: {entry['written']:,} written, left out: {left_out or 'none'}, asked again: {again or 'none'}; "
            f"{nouns['total']} new nouns in {nouns['rows']} rows"
        )
    usage, cost = audit["teacher"]["usage"], audit["teacher"]["cost"]
    print(
        f"teacher: {usage['requests']:,} requests, {usage['cached']:,} from the cache, {usage['prompt_tokens']:,} prompt and "
        f"{usage['completion_tokens']:,} reply tokens, cost {'unknown' if cost is None else f'{cost:.4f}'}"
    )
    if audit["bad_rows"]["total"]:
        print(f"{audit['bad_rows']['total']:,} caption rows left out: {audit['bad_rows']['by_reason']}")
    for leak in audit["leaks"]:
        print(f"leak: {leak}", file=sys.stderr)
    if not any(entry["written"] for entry in audit["modes"].values()):
        return f"no usable text among all replies; see {args.out / 'audit.json'}. {audit['problem']}"
    return 1 if audit["leaks"] else 0


if __name__ == "__main__":
    with stop.listening():
        run_tool(make_parser(), build, show)
