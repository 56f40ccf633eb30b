"""Who writes: a model on any OpenAI-compatible server, or one of ours in this process. Wanted texts are asked for until one can be read.

    writer = open_writer(args, budget)
    found: dict[str, Outcome] = {}
    ask_all(writer, {name: Wanted(request, read, form), ...}, attempts, found)

`read` takes what was said and returns the value, or raises Unread with a reason; a reason is counted, and nothing is made up in its
place. Replies of a server are kept on disk one by one, so that no request is paid twice.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from drive_vlm.builders.ambiguity.replies import Form, form_problem
from drive_vlm.builders.synthesis.cost import Budget, cost_of
from drive_vlm.config import CommandParser, output_folder
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.oia_labels import json_object
from drive_vlm.judges.judge import RETRY_TEMPERATURE, Request, messages_of
from drive_vlm.launch import stop
from drive_vlm.store.cache import write_json
from drive_vlm.store.forms import read_object

BACKENDS = ("openai", "hf")
SCHEMA_MODES = ("json_schema", "json_object", "none")


class Unread(Exception):
    """A reply that cannot be used; its text is the reason, which is counted: "not_json", "schema", "refusal" ..."""


@dataclass(frozen=True)
class Said:
    """A reply. `ending`: "stop", "length" (cut) or "refused" (empty). Tokens are None where nobody counts them."""

    text: str
    ending: str
    prompt_tokens: int | None = None
    reply_tokens: int | None = None


@dataclass(frozen=True)
class Wanted:
    """A text that is wanted. `form`: of a reply in JSON (builders/ambiguity/replies.py), None for a free text."""

    request: Request
    read: Callable[[Said], Any]
    form: Form | None = None


@dataclass
class Outcome:
    """What came of a Wanted. `value` is None where no attempt could be read; `reasons` are those of the unread ones; `bad`: its
    picture cannot be sent."""

    value: Any = None
    reasons: list[str] = field(default_factory=list)
    ending: str = ""
    calls: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    counted: bool = True
    bad: BadRow | None = None

    @property
    def open(self) -> bool:
        return self.value is None and self.bad is None


class Writer(Protocol):
    """Replies to named requests, as they come; a BadRow for one whose picture cannot be sent."""

    def replies(self, wanted: Mapping[str, Wanted], attempt: int) -> Iterator[tuple[str, Said | BadRow]]: ...


def ask_all(writer: Writer, wanted: Mapping[str, Wanted], attempts: int, found: dict[str, Outcome]) -> None:
    """Fill `found` by the names of `wanted`; unread ones are asked for again, `attempts` times in all.

    Raises ValueError where the server cannot be asked or a limit is reached, StopRequested: what is in `found` and not open is
    finished then.
    """
    for attempt in range(attempts):
        asked = {name: item for name, item in wanted.items() if name not in found or found[name].open}
        if not asked:
            return
        for name, said in writer.replies(asked, attempt):
            outcome = found.setdefault(name, Outcome())
            if isinstance(said, BadRow):
                outcome.bad = said
                continue
            outcome.calls, outcome.ending = outcome.calls + 1, said.ending
            outcome.counted = outcome.counted and said.prompt_tokens is not None
            outcome.prompt_tokens += said.prompt_tokens or 0
            outcome.reply_tokens += said.reply_tokens or 0
            try:
                outcome.value = wanted[name].read(said)
            except Unread as reason:
                outcome.reasons.append(str(reason))


def read_json(said: Said, form: Form) -> dict[str, Any]:
    """The one JSON object of a reply, of this form. Raises Unread: no_answer, cut_off, not_json, schema."""
    if said.ending == "refused":
        raise Unread("no_answer")
    if said.ending == "length":
        raise Unread("cut_off")
    fields, _ = json_object(said.text.rpartition("</think>")[2])
    if fields is None:
        raise Unread("not_json")
    if form_problem(fields, form):
        raise Unread("schema")
    return fields


def json_schema(form: Form) -> dict[str, Any]:
    """The JSON schema of a form, as servers take it in their strict mode: every field is required and no other is allowed.

    >>> json_schema({"names": [str]})["properties"]
    {'names': {'type': 'array', 'items': {'type': 'string'}}}
    """
    if isinstance(form, dict):
        fields = {name: json_schema(part) for name, part in form.items()}
        return {"type": "object", "properties": fields, "required": list(form), "additionalProperties": False}
    if isinstance(form, list):
        return {"type": "array", "items": json_schema(form[0])}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[form]}


# The two writers ------------------------------------------------------------------------------------------------------------


class ServerWriter:
    """A model behind ChatClient. Raises ValueError for a limit without prices."""

    def __init__(self, args: Any, budget: Budget) -> None:
        from drive_vlm.judges.chat_client import ChatClient

        self.args, self.budget = args, budget
        self.cache = args.cache or Path(f"{args.out}.replies")
        self.client = ChatClient(
            args.base_url, args.model, args.api_key_env, self.cache, args.timeout, args.max_retries,
            args.requests_per_minute, args.price_in, args.price_out, purse=budget,
        )  # fmt: skip

    def replies(self, wanted: Mapping[str, Wanted], attempt: int) -> Iterator[tuple[str, Said | BadRow]]:
        """Raises ValueError, with the way on, where the server cannot be asked."""
        from drive_vlm.judges.chat_client import ChatError

        messages: dict[str, Any] = {}
        for name, item in wanted.items():
            try:
                messages[name] = messages_of(item.request)
            except BadRow as error:
                yield name, error
        own = {name: response_format(wanted[name].form, self.args.schema_mode) for name in messages}
        sampling = {"temperature": temperature_of(self.args, attempt), "max_tokens": self.args.max_tokens}
        sampling |= {"seed": self.args.seed + attempt}
        files = {name: self._nothing_file(messages[name], sampling | own[name]) for name in messages}
        for name, path in files.items():
            if path.is_file():
                del messages[name]
                yield name, Said("", str(read_object(path).get("ending")), 0, 0)
        asked = self.client.complete_each(messages, self.args.workers, "asking", True, own, **sampling)
        try:
            for name, reply in asked:
                if reply.cached:
                    self.budget.keep(reply)
                if reply.is_nothing:
                    files[name].parent.mkdir(parents=True, exist_ok=True)
                    write_json(files[name], {"ending": reply.ending})
                yield name, Said(reply.text, reply.ending, reply.prompt_tokens, reply.completion_tokens)
        except ChatError as error:
            hint = ""
            if self.args.schema_mode != "none":
                hint = f" A server without --schema_mode {self.args.schema_mode} may refuse it: --schema_mode none sends no schema."
            raise ValueError(
                f"{error}\nThe replies so far are in {self.cache}: the same command goes on from there.{hint}"
            ) from error

    def _nothing_file(self, messages: Any, sampling: dict[str, Any]) -> Path:
        """Where an answer with nothing is noted, which the client's own cache does not keep: it was paid too. Noted when its block ends,
        so that a process that is killed within one asks for it again."""
        from drive_vlm.judges.chat_client import request_key

        key = request_key(self.args.model, messages, sampling)
        return Path(self.cache) / key[:2] / f"{key}.nothing.json"


class LocalWriter:
    """Any family of drive_vlm.models in this process: Model^i. Its texts are written freely, not held to a schema.

    --local_batch rows are answered together; rows of a batch move each other's last digits, so only with 1 a stopped run surely
    gives the texts of one that was not stopped.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        self._model: Any = None

    def replies(self, wanted: Mapping[str, Wanted], attempt: int) -> Iterator[tuple[str, Said | BadRow]]:
        from drive_vlm.config import DataConfig, ModelConfig
        from drive_vlm.judges.local import sample_of
        from drive_vlm.sampling.local import LocalModel, Sampling, batches_of

        if self._model is None:
            self._model = LocalModel(ModelConfig(model=self.args.model), DataConfig(data=[]))
        sampling = Sampling(
            max_new_tokens=self.args.max_tokens,
            temperature=temperature_of(self.args, attempt),
            seed=self.args.seed + attempt,
            on_bad_row="skip",
        )
        samples = [sample_of(item.request, name) for name, item in wanted.items()]
        open_ = set(wanted)
        bad: list[BadRow] = []
        batches = batches_of(samples, self.args.local_batch)
        for sample, answer in self._model.answers(batches, sampling, bad, between=stop.check):
            open_.discard(sample.id)
            yield sample.id, Said(answer.text, answer.finish_reason if answer.text else "refused")
        # A batch names the bad row by its place in the message only; what had no answer is what was bad, in the order of batches.
        ordered = [sample.id for batch in batches for sample in batch if sample.id in open_]
        yield from zip(ordered, bad, strict=True)


def open_writer(args: Any, budget: Budget) -> Writer:
    return ServerWriter(args, budget) if args.backend == "openai" else LocalWriter(args)


def temperature_of(args: Any, attempt: int) -> float:
    """At 0 a model would say again what could not be read."""
    return args.temperature if attempt == 0 else max(args.temperature, RETRY_TEMPERATURE)


def response_format(form: Form | None, mode: str) -> dict[str, Any]:
    """What a request says of the form of its reply, by --schema_mode; nothing for a free text."""
    if form is None or mode == "none":
        return {}
    if mode == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "reply", "schema": json_schema(form), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def writer_flags(parser: CommandParser, who: str, temperature: float, max_tokens: int) -> None:
    """The flags of a step in which `who` (captioner, teacher) writes."""
    add, flag = parser.add_argument, parser.flag
    flag(
        "--backend",
        BACKENDS,
        f"who is the {who}: a model on any OpenAI-compatible server, or a directory of ours in this process",
    )
    add("--model", required=True, help=f"the {who}: its name at the server, or with --backend hf its directory")
    flag("--base_url", "http://localhost:8000/v1", "address of the server")
    flag("--api_key_env", "OPENAI_API_KEY", "environment variable that holds the server's key")
    add(
        "--cache",
        type=output_folder,
        help="folder of the server's replies (default: OUT.replies), kept by the model's name wherever it is served: another model "
        "of the same name needs another folder",
    )
    flag("--attempts", 2, "times a text is asked for, each with another seed, until it can be read")
    flag("--seed", 0, "seed of the first attempt, and of every choice")
    flag("--temperature", temperature, f"of the first attempt; later ones use {RETRY_TEMPERATURE} at least", most=2)
    flag("--max_tokens", max_tokens, "tokens of a reply, at most")
    flag(
        "--schema_mode",
        SCHEMA_MODES,
        "how the server learns the form of replies in JSON; they are checked in any case",
    )
    flag("--workers", 8, "requests at a time")
    flag("--timeout", 120.0, "seconds that one request may take", 0.1, 86_400)
    flag("--max_retries", 4, "times a request is repeated after a fault of server or network", least=0)
    flag("--requests_per_minute", float, "rate limit (default: none)", 0.01, 1e6)
    flag("--local_batch", 1, "rows answered together with --backend hf; with 1 a stopped run gives the same texts")
    add("--teacher_prompts", type=Path, help="folder of the prompts (default: prompts/synthesis next to the tool)")
    flag("--price_in", float, "US dollars for a million prompt tokens", least=0)
    flag("--price_out", float, "US dollars for a million reply tokens", least=0)
    flag(
        "--max_cost",
        float,
        "US dollars that the lines of --out may cost; the run stops before a request that may pass it",
        least=0,
    )
    flag("--picture_tokens", int, "tokens that the server counts for a picture at most, for --estimate and --max_cost")
    flag("--preview", int, "make the first N lines only and show them, with what they took", least=1)
    flag("--estimate", False, "show calls, tokens, cost, GPU hours and disk of the whole run; ask nobody")
    flag(
        "--gpu_seconds",
        float,
        "seconds of a GPU for a picture, for --estimate (default: what --preview measured with --backend hf)",
    )


def model_of(args: Any) -> dict[str, Any]:
    """Who writes, for the settings of the step. Raises ValueError for a directory that is no model."""
    if args.backend == "openai":
        return {"name": args.model}
    from drive_vlm.models import model_type
    from drive_vlm.store.fingerprint import model_fingerprint

    model_type(args.model)
    return model_fingerprint(args.model)


def totals(outcomes: list[Outcome], args: Any) -> tuple[dict[str, int], float]:
    """({"calls", "prompt", "reply"}, US dollars) of a picture's outcomes; tokens are left out where nobody counted them. What a reply
    of the cache once cost counts like any other, so that a line does not depend on how often a run was stopped."""
    tokens = {"calls": sum(item.calls for item in outcomes)}
    if not all(item.counted for item in outcomes):
        return tokens, 0.0
    tokens |= {
        "prompt": sum(item.prompt_tokens for item in outcomes),
        "reply": sum(item.reply_tokens for item in outcomes),
    }
    if args.price_in is None or args.price_out is None:
        return tokens, 0.0
    return tokens, cost_of(tokens["prompt"], tokens["reply"], args.price_in, args.price_out)


def reasons_of(outcomes: Mapping[str, Outcome]) -> Counter[str]:
    """How often each reason stood in the way; a reason's detail behind ":" is not counted apart."""
    return Counter(reason.partition(":")[0] for item in outcomes.values() for reason in item.reasons)


def prompt_sha(*parts: Any) -> str:
    """SHA-256 of a prompt: its turns, its examples, the form of its reply."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False).encode()).hexdigest()
