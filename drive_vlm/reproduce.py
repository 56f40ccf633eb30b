"""Print (or run) the command of a run again, from its run.json, with all that differs now: code, data, model, versions, machine."""

import dataclasses
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser, user_errors
from drive_vlm.launch.manifest import environment, machine, versions
from drive_vlm.store.fingerprint import ROOT, code_hash, file_hashes, git_state, model_fingerprint
from drive_vlm.store.forms import part, read_object
from drive_vlm.store.secrets import HIDDEN

EXAMPLES = """
python -m drive_vlm reproduce runs/sft/run.json
python -m drive_vlm reproduce runs/sft/run.json --go --output_dir runs/sft_again
"""
_LAUNCH = ROOT / "recipes" / "_launch.sh"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One difference to the run. `decides`: it can change the result, not only speed or rounding."""

    what: str
    then: str
    now: str
    decides: bool = True


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm reproduce`."""
    parser = CommandParser(prog="python -m drive_vlm reproduce", description=__doc__, examples=EXAMPLES)
    parser.add_argument("manifest", metavar="run.json", help="the manifest of a run, or its output directory")
    parser.flag("--go", False, "run the command, not only print it")
    parser.add_argument(
        "--output_dir", help="where the new run writes (default: next to the old one, with _reproduced added)"
    )
    parser.flag("--json", False, "print command and differences as JSON")
    flags = parser.parse_args(list(words))
    with user_errors(parser.prog):
        manifest = read_manifest(Path(flags.manifest))
        out = new_output_dir(manifest, flags.output_dir)
        command = command_words(manifest, out)
        if flags.go:
            check_can_run(manifest, command)
    found = list(differences(manifest))
    line = one_line(manifest, command)
    if flags.json:
        result = {"command": line, "output_dir": out, "recipe": manifest.get("recipe")}
        result |= {"same": not any(item.decides for item in found), "differences": [vars(item) for item in found]}
        print(json.dumps(result, indent=2))
    else:
        print_differences(manifest, found)
        print(line, flush=True)
    if flags.go:
        sys.exit(run(manifest, command))


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of run.json. Raises ValueError for another file, and for one of a version that did not keep the command."""
    path = path / "run.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give the run.json of a run, or its output directory.")
    manifest = read_object(path)
    kinds = {"words": list[str], "topology": dict, "directory": str}
    if missing := [key for key in kinds if key not in manifest]:
        raise ValueError(
            f'{path}: no "{missing[0]}" in it: not the manifest of a run, or of a version that did not keep it.'
        )
    for key, kind in kinds.items():
        part(manifest, key, kind, path)
    # What else is looked at; each may be absent.
    for key, kind in {
        "config": dict,
        "versions": dict[str, str],
        "environment": dict[str, str],
        "file_hashes": dict,
    }.items():
        part({key: {}} | manifest, key, kind, path)
    return manifest


def new_output_dir(manifest: dict[str, Any], given: str | None) -> str:
    """Absolute path of the new run's directory: the one that was given, else one that does not exist yet."""
    if given is not None:
        return str(Path(given).absolute())
    old = _split_words(manifest)[0] or manifest.get("config", {}).get("training", {}).get("output_dir") or "runs/run"
    path = Path(manifest["directory"], old)
    names = (
        path.with_name(f"{path.name}_reproduced{number}")
        for number in itertools.chain([""], map(str, itertools.count(2)))
    )
    return str(next(name for name in names if not name.exists()))


def _split_words(manifest: dict[str, Any]) -> tuple[str | None, list[str]]:
    """(the run's --output_dir, None where it was not given; the other words of its command)."""
    parser = CommandParser(add_help=False)
    parser.add_argument("--output_dir")
    known, rest = parser.parse_known_args(manifest["words"])
    return known.output_dir, rest


def command_words(manifest: dict[str, Any], out: str) -> list[str]:
    """The words after `python -m drive_vlm`, with the new output directory in the place of the old."""
    return [*_split_words(manifest)[1], "--output_dir", out]


def check_can_run(manifest: dict[str, Any], command: Sequence[str]) -> None:
    """Raises ValueError for what keeps this machine from running the command."""
    if not Path(manifest["directory"]).is_dir():
        raise ValueError(
            f"{manifest['directory']}: the directory the run started in is gone, and its paths start there."
        )
    if any(HIDDEN in word for word in command):
        raise ValueError(
            f"the command held a secret that run.json does not keep ({HIDDEN}). Print it without --go and fill it in."
        )
    if not _alone(manifest) and not _LAUNCH.is_file():
        raise ValueError(f"{_LAUNCH} is missing: several processes are started from a checkout of the project.")
    if manifest["topology"]["nnodes"] > 1 and not {"NODE_RANK", "SLURM_NODEID"} & os.environ.keys():
        raise ValueError(
            f"the run had {manifest['topology']['nnodes']} nodes. Start this on each of them with NODE_RANK and MASTER_ADDR set, "
            "or inside a Slurm step."
        )


def _alone(manifest: dict[str, Any]) -> bool:
    """Whether plain `python` started it: one process, no launcher."""
    return manifest["topology"]["launcher"] == "python" and manifest["topology"]["world_size"] == 1


def start(manifest: dict[str, Any], command: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(variables that recipes/_launch.sh reads, command that starts the run): Python itself, or its `launch` for several processes."""
    if _alone(manifest):
        return {}, ["python", "-m", "drive_vlm", *command]
    then = manifest["topology"]
    launcher = "deepspeed" if then["launcher"] == "deepspeed" else "torchrun"
    variables = {"NPROC_PER_NODE": str(then["nproc_per_node"]), "NNODES": str(then["nnodes"]), "LAUNCHER": launcher}
    return variables, ["bash", "-euo", "pipefail", "-c", 'source "$0" && launch "$@"', str(_LAUNCH), *command]


def one_line(manifest: dict[str, Any], command: Sequence[str]) -> str:
    """Directory, environment and command as one line for a shell."""
    variables, words = start(manifest, command)
    settings = [f"{name}={value}" for name, value in variables.items()]
    return f"cd {shlex.quote(manifest['directory'])} && {shlex.join([*settings, *words])}"


def run(manifest: dict[str, Any], command: Sequence[str]) -> int:
    """Run the command where the old run ran, with this Python and this code; its exit code."""
    variables, words = start(manifest, command)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    python_path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    env = {**os.environ, **variables, "PATH": path, "PYTHONPATH": python_path}
    return subprocess.run(words, cwd=manifest["directory"], env=env, check=False).returncode


def differences(manifest: dict[str, Any]) -> Iterator[Difference]:
    """Everything that differs from the manifest; data files are read again in full."""
    old, sources = manifest.get("code_hash"), code_hash()
    if old != sources:
        yield Difference("code", _code(manifest.get("git") or {}, old), _code(git_state() or {}, sources))
    files, model = manifest.get("file_hashes", {}), manifest.get("model_fingerprint", {})
    files_now = {name: digest or "missing" for name, digest in file_hashes(files, cached=False).items()}
    # The name is no difference: a directory is the same model under another path.
    model_now = model_fingerprint(model["name"]) | {"name": model["name"]} if model else {}
    sides = (
        ("file", files, files_now, True),
        (f"model {model.get('name')}:", model, model_now, True),
        ("version of", manifest.get("versions", {}), versions(), True),
        ("variable", manifest.get("environment", {}), environment(), False),
        ("machine:", manifest.get("machine", {}), machine(), False),
    )
    for what, then, now, decides in sides:
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                yield Difference(f"{what} {key}", _text(then.get(key)), _text(now.get(key)), decides)


def _code(state: dict[str, Any], sources: str | None) -> str:
    if "commit" not in state:
        return f"sources {_text(sources)}"
    changed = f" + diff {_text(state['diff_hash'])} (run.diff)" if "diff_hash" in state else ""
    return f"commit {state['commit'][:12]}{changed}"


def _text(value: Any) -> str:
    """A value for the table; of a hash the first 12 letters."""
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    text = "none" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{32,}", text) else text


def print_differences(manifest: dict[str, Any], found: Sequence[Difference]) -> None:
    """A table on stderr, so that stdout holds the command alone."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, markup=False, emoji=False)
    recipe, job = manifest.get("recipe"), manifest.get("job", {}).get("SLURM_JOB_ID")
    if recipe or job:
        console.print("Started" + (f" by {recipe}" if recipe else "") + (f" in Slurm job {job}" if job else "") + ".")
    checked = f"code, {len(manifest.get('file_hashes', {}))} files, model, versions, environment, machine"
    if not found:
        console.print(f"Nothing differs ({checked}).")
        return
    table = Table("what", "then", "now", "may change", title="What differs")
    for item in found:
        table.add_row(item.what, item.then, item.now, "the result" if item.decides else "speed or rounding")
    console.print(table)
