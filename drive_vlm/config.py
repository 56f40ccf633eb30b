"""What every command line of the project shares: one parser, flags derived from dataclass fields, one tail of all tools.

No torch here: `--help` of any command must come at once.
"""

import argparse
import contextlib
import dataclasses
import difflib
import enum
import errno
import json
import math
import os
import re
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

# The label of a token that is not learned: the default of torch's cross entropy.
IGNORE_INDEX = -100
# Logits that the loss holds at a time (models/training_forward.py): 256 MB in fp32. The plan counts them too.
CHUNK_ELEMENTS = 1 << 26
# The name of --attn_implementation sdpa in transformers (models/row_attention.py).
ROW_ATTENTION = "sdpa_by_row"
# Names under which a batch says where the rows of a pack end: transformers' FlashAttentionKwargs.
ROW_ENDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def field(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
    **kwargs: Any,
) -> Any:
    """A dataclass field with its help text; the field is the one owner of default, type, choices, range and help.

    `least` and `most` of a number are those of `_in_range`, unless they are given.
    """
    metadata = {"help": help, "choices": choices, "range": (least, most)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata, **kwargs)
    return dataclasses.field(default=default, metadata=metadata, **kwargs)


def image_root_field() -> Any:
    """--image_root of every command that reads rows."""
    return field(None, help="folder that picture paths start from (default: the data file's own folder)")


def links_field() -> Any:
    """--links of every command that reads rows."""
    words = "symbolic links that leave the image root: follow, or refuse their rows"
    return field("follow", help=words, choices=("follow", "refuse"))


# Names that flags had, and the one that each thing has in every tool now.
_RENAMED = {
    "videos": "image_root", "images": "image_root", "root": "image_root", "prompt": "judge_prompt", "prompts": "judge_prompts teacher_prompts",
    "detections": "physics_detections", "weights": "physics_weights", "vocabulary": "physics_vocabulary", "processes": "physics_processes",
    "physics_spacy": "spacy_model", "spacy": "spacy_model", "captions": "data", "rows": "data", "generations": "predictions",
    "reference": "annotations", "scenes": "scene_names", "split": "splits", "max_frames": "limit", "steps": "max_steps",
    "epochs": "num_train_epochs", "held_out": "held_out_share", "vision": "vision_tower", "language": "language_model", "out": "json",
}  # fmt: skip


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """' Did you mean X?' for an error message, or '' when nothing is near. X: what the flag `name` is called now, else the
    name of `known` with the most letters in common."""
    dashes, known = "--" * name.startswith("--"), list(known)
    renamed = [dashes + new for new in _RENAMED.get(name.removeprefix("--"), "").split()]
    near = [new for new in renamed if new in known] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each flag, examples in the epilog left as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=120)

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is argparse.SUPPRESS or action.default == []:
            return action.help or ""
        return super()._get_help_string(action) or ""


class CommandParser(argparse.ArgumentParser):
    """The parser of every command and tool.

    Flags are spelled with underscores; dashes are accepted as well. A flag it does not know is refused with the
    nearest known name, abbreviations are refused, and an `examples` text is shown under `--help`.
    """

    def __init__(self, examples: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _HelpFormatter)
        if examples:
            kwargs["epilog"] = "examples:\n" + "\n".join("  " + line.strip() for line in examples.strip().splitlines())
        kwargs["allow_abbrev"] = False
        super().__init__(**kwargs)
        # What add_argument(type=int) and (type=float) take: finite numbers, from 0.
        for kind in (int, float):
            self.register("type", kind, _in_range(kind))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([_underscored(word) for word in words], namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((word for word in unknown if word.startswith("--")), unknown[0]).split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown argument {flag or repr(flag)}.{nearest(flag, known)}")
        return parsed

    def flag(
        self, name: str, default: Any, help: str, least: float | None = None, most: float | None = None, **more: Any
    ) -> None:
        """A flag with a default, which says the type. `least` and `most` of a number are those of `_in_range`, unless given.

        False: a switch. A tuple: the choices, the first of them the default. A type: no default. A list: several words.
        """
        help = help.replace("%", "%%")
        if default is False:
            self.add_argument(name, action="store_true", help=help)
        elif isinstance(default, tuple):
            self.add_argument(name, choices=default, default=default[0], help=help)
        else:
            first = default[0] if isinstance(default, list) else default
            several = {"nargs": "+"} if isinstance(default, list) else {}
            kind, default = (first, None) if isinstance(first, type) else (type(first), default)
            number = _in_range(kind, name, first, least, most) if kind in (int, float) else kind
            self.add_argument(name, type=number, default=default, help=help, **several | more)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n(see {self.prog} --help)\n")


def _underscored(word: str) -> str:
    flag, equals, value = word.partition("=")
    # A word with blanks is a value that begins with dashes, such as flags handed on in quotes.
    if not word.startswith("--") or len(flag.split()) > 1:
        return word
    return "--" + flag[2:].replace("-", "_") + equals + value


# Seconds that the other ranks wait before they speak. An error that all ranks meet is reported by the main one, at whose end,
# which takes a second with torch, a launcher ends the others.
_HEAD_START = 3.0


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG)


@contextlib.contextmanager
def disk_errors(
    safe: Callable[[], str] = lambda: "What was finished before is kept", place: str = ""
) -> Iterator[None]:
    """Turn an OSError of the disk into a ValueError with the file, or `place` where it has no name, the cause, and what is
    `safe`; others are left as they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename or place}: ".removeprefix(": ")
        raise ValueError(
            f"{where}cannot be read or written ({error.strerror}). {safe()}: fix the cause and go on."
        ) from error


@contextlib.contextmanager
def user_errors(prog: str, main_only: bool = False) -> Iterator[None]:
    """Inside, a ValueError ends the process: one line on stderr, exit code 2. So does a disk that is full or read-only.

    Under several ranks the main one speaks first, another one later, with its number: its rows are not those of the main one.
    With `main_only` the others are silent, since RunStatus speaks for them.
    """
    try:
        with disk_errors():
            yield
    except ValueError as error:
        # RANK without WORLD_SIZE is a mistake that read_topology refuses: it must not be silent on any rank.
        rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
        if rank == "0":
            print(f"{prog}: error: {error}", file=sys.stderr)
        elif not main_only:
            time.sleep(_HEAD_START)
            print(f"{prog}: error: rank {rank}: {error}", file=sys.stderr)
        sys.exit(2)


def run_tool(
    parser: CommandParser,
    run: Callable[[Any], Any],
    show: Callable[[Any, Any], Any] | None = None,
    config: type | None = None,
) -> None:
    """The tail of every tool.

    1. Parse the flags; into the dataclass `config` where the tool has one. A --json that cannot be written is refused here.
    2. Call `run(args)`. A ValueError is the user's to fix (`user_errors`).
    3. Write what `run` returned to the file of --json, where the tool has that flag.
    4. Call `show(result, args)`, which prints. What it returns is the exit status, as sys.exit takes it: None for 0, a code,
       or a text for stderr and code 1.
    `run` returns None on ranks other than the main one, and where nothing is to be shown: steps 3 and 4 are left out.
    """
    args = parser.parse_args()
    if isinstance(given := getattr(args, "json", None), (str, Path)):
        try:
            output_file(str(given))
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --json: {error}")
    with user_errors(parser.prog):
        if config is not None:
            args = from_namespace(config, args)
        result = run(args)
        if result is None:
            return
        if getattr(args, "json", None):
            path = Path(args.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(plain(result), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    status = show(result, args) if show else None
    if status:
        sys.exit(status)


def output_folder(text: str) -> Path:
    """The type of a flag that names a folder to write: refused at once where that cannot be, not after the work."""
    path = Path(text)
    there = next(above for above in (path, *path.absolute().parents) if above.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = "cannot be written to" if there.is_dir() else "is not a folder"
        raise argparse.ArgumentTypeError(f"{text}: {there} {problem}")
    return path


def output_file(text: str) -> Path:
    """The same of a flag that names a file; its folder need not be there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file" if text else "'' names no file")
    if not path.exists():
        output_folder(str(path.parent))
    elif not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written to")
    return path


def _parse_bool(text: str) -> bool:
    if text.lower() in {"true", "1", "yes"}:
        return True
    if text.lower() in {"false", "0", "no"}:
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


# What seeds take: numpy's generators have 32 bits.
MOST_SEED = 2**32 - 1


def _in_range(
    kind: Callable[[str], Any],
    name: str = "",
    default: object = None,
    least: float | None = None,
    most: float | None = None,
) -> Callable[[str], Any]:
    """`kind` (int or float), refusing what lies outside, NaN and infinity; argparse names the flag.

    Unless it is said otherwise, a number is not negative, a count whose default is one or more is at least 1, and none is so
    large that only a slip of the hand explains it.
    """
    if least is None:
        least = 1 if kind is int and isinstance(default, int) and default >= 1 else 0
    if most is None:
        most = 1e18 if kind is float else MOST_SEED if name.removeprefix("--").endswith("seed") else 2**31 - 1

    def number(text: str) -> Any:
        value = kind(text)
        # `not >=` in place of `<`: NaN is refused as well.
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        if not value <= most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {text}")
        return value

    # argparse says "invalid int value" by this name.
    number.__name__ = kind.__name__
    return number


def add_dataclass(parser: argparse.ArgumentParser, cls: type, title: str | None = None) -> None:
    """Add one flag for each init field of the dataclass `cls`, in a group named after it.

    `bool` takes an optional true/false, `list[X]` takes one or more words, `X | None` may stay unset.
    """
    group = parser.add_argument_group(title or cls.__name__)
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if not item.init or "help" not in item.metadata:
            continue
        kind: Any = hints[item.name]
        options: dict[str, Any] = {}
        arguments = [a for a in typing.get_args(kind) if a is not type(None)]
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            kind = arguments[0]
        if typing.get_origin(kind) is list:
            options["nargs"] = "+"
            kind = typing.get_args(kind)[0]
        if typing.get_origin(kind) is Literal:
            options["choices"] = typing.get_args(kind)
            kind = str
        if item.metadata.get("choices"):
            options["choices"] = item.metadata["choices"]
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if kind is bool:
            options.update(type=_parse_bool, nargs="?", const=True, metavar="BOOL")
        elif kind in (int, float):
            options["type"] = _in_range(kind, item.name, default, *item.metadata["range"])
        else:
            options["type"] = kind
        if default is dataclasses.MISSING:
            options["required"] = True
        else:
            options["default"] = default
        group.add_argument(f"--{item.name}", help=item.metadata["help"].replace("%", "%%"), **options)


def from_namespace(cls: type, namespace: argparse.Namespace) -> Any:
    """Build the dataclass `cls` from the parsed flags that belong to it."""
    names = [item.name for item in dataclasses.fields(cls) if item.init and "help" in item.metadata]
    return cls(**{name: getattr(namespace, name) for name in names})


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses become dicts, enums their values, paths strings, numbers that are not finite null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


@dataclasses.dataclass
class ModelConfig:
    """Which model, and which of its weights train."""

    model: str = field(help="model directory, hub id (OpenGVLab/InternVL3-1B-hf) or LoRA checkpoint directory")
    attn_implementation: str = field("sdpa", help="attention kernel", choices=("sdpa", "flash", "flex", "eager"))
    dtype: str = field(
        "auto",
        help="weights in memory; auto: bfloat16 under DeepSpeed with --bf16, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    freeze: list[str] = field(
        [],
        help="parts that do not train: vision_tower, projector, language_model (siglip_qwen: temporal_embeddings), or a module path",
    )
    lora_rank: int = field(
        0, help="rank of LoRA adapters on the language model; 0 trains its weights in full", most=65536
    )
    lora_alpha: int | None = field(None, help="LoRA scale (default: twice the rank)", least=1, most=2**20)
    lora_dropout: float = field(0.0, help="dropout before each adapter", most=0.99)
    lora_targets: str | None = field(
        None, help="regular expression of the linear layers to adapt (default: all of the language model)"
    )
    lora_embeddings: bool = field(
        False, help="train the word embeddings in full next to the adapters (MiniCPM-V's own scripts do)"
    )
    quantize: str = field(
        "none",
        help="nf4: the language model's linear layers in 4 bits (bitsandbytes, CUDA), trained through --lora_rank",
        choices=("none", "nf4"),
    )
    max_tiles: int | None = field(
        None, help="tiles a row may use for its pictures (default: the processor's max_patches)", least=1, most=1024
    )
    min_pixels: int | None = field(
        None, help="pixels that a smaller picture is scaled up to, of a model that keeps resolutions (Qwen-VL)", least=1
    )
    max_pixels: int | None = field(
        None,
        help="pixels that a larger picture or frame is scaled down to (Qwen-VL; default: the processor's)",
        least=1,
    )
    trust_remote_code: bool = field(
        False, help="run Python code that comes with the model's configuration; never done otherwise"
    )

    def __post_init__(self) -> None:
        try:
            re.compile(self.lora_targets or "")
        except re.error as error:
            raise ValueError(f"--lora_targets {self.lora_targets} is no regular expression ({error}).") from error
        if self.lora_embeddings and not self.lora_rank:
            raise ValueError(
                "--lora_embeddings is for runs with --lora_rank: without adapters all weights train anyway."
            )


@dataclasses.dataclass
class DataConfig:
    """Which rows, and what happens with one that cannot be used."""

    data: list[str] = field(
        help="training rows: .jsonl, .json, .parquet or the folder of a data set (docs/data.md); several are joined"
    )
    eval_data: list[str] = field([], help="rows for the evaluation loss during training")
    image_root: str | None = image_root_field()
    links: str = links_field()
    max_length: int = field(4096, help="tokens of a row at most, and of a pack", least=1)
    packing: bool = field(
        False, help="put several rows into one sequence of --max_length tokens, without attention across rows"
    )
    num_frames: int = field(8, help="frames taken from a video, evenly spread", most=100_000)
    feature_cache: str | None = field(
        None,
        help="folder of tools/cache_features.py: train from the frozen vision tower's features; no picture is decoded, no tower runs",
    )
    on_bad_row: str = field(
        "error",
        help="error: stop at the first bad row; skip: leave it out, count it in data_audit.json",
        choices=("error", "skip"),
    )


@dataclasses.dataclass
class RunConfig:
    """How the run is laid out; every flag of transformers.TrainingArguments is accepted next to these."""

    global_batch_size: int | None = field(
        None,
        help="sequences for one optimizer step over all processes; gradient accumulation follows from it (default: no accumulation)",
        least=1,
    )
    deepspeed: str | None = field(
        None, help="memory layout: a name in ds_configs (zero1, zero2, zero3, zero2_offload ...) or a JSON file"
    )
    resume: str | None = field(None, help="checkpoint directory to go on from, or auto: the newest in --output_dir")
    trust_checkpoint: bool = field(
        False,
        help="resume from DeepSpeed shards that hold more than tensors; their code runs, so only if you trust who wrote them",
    )
    keep: int = field(2, help="checkpoints to keep besides the best", least=1)
    chunk_tokens: int | None = field(
        None, help="labelled positions whose logits exist at a time (default: 256 MB of logits)", least=1
    )
    hang_timeout: float = field(
        600.0,
        help="seconds without a sign of life from any rank after which the run ends and names the rank that hangs; three times "
        "as long for the first step, saving and evaluation; 0: never",
    )
    peak_flops: float | None = field(
        None, help="peak FLOPS of one device for MFU (default: known GPUs; unknown devices show no MFU)", least=1
    )
