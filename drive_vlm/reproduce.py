"""Print (or run) the command of a run again, from its run.json, with all that differs now: code, data, model, versions, machine."""

import dataclasses
import json
import os
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
    parser.add_argument("--go", action="store_true", help="run the command, not only print it")
    parser.add_argument(
        "--output_dir", help="where the new run writes (default: next to the old one, with _reproduced added)"
    )
    parser.add_argument("--json", action="store_true", help="print command and differences as JSON")
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
    training = manifest.get("config", {}).get("training", {})
    old = Path(
        manifest["directory"], _flag_value(manifest["words"], "output_dir") or training.get("output_dir") or "runs/run"
    )
    free = old.with_name(f"{old.name}_reproduced")
    number = 2
    while free.exists():
        free = old.with_name(f"{old.name}_reproduced{number}")
        number += 1
    return str(free)


def _flag_value(words: Sequence[str], name: str) -> str | None:
    """The value of --name VALUE or --name=VALUE, the last one given."""
    value = None
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, rest = word.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            value = rest if equals else after
    return value


def command_words(manifest: dict[str, Any], out: str) -> list[str]:
    """The words after `python -m drive_vlm`, with the new output directory in the place of the old."""
    kept: list[str] = []
    words = iter(manifest["words"])
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag.replace("-", "_") == "__output_dir":
            if not equals:
                next(words, None)
            continue
        kept.append(word)
    return [*kept, "--output_dir", out]


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


def topology_variables(manifest: dict[str, Any]) -> dict[str, str]:
    """What recipes/_launch.sh reads; empty for a run that no launcher started."""
    if _alone(manifest):
        return {}
    then = manifest["topology"]
    launcher = "deepspeed" if then["launcher"] == "deepspeed" else "torchrun"
    return {"NPROC_PER_NODE": str(then["nproc_per_node"]), "NNODES": str(then["nnodes"]), "LAUNCHER": launcher}


def start_words(manifest: dict[str, Any], command: Sequence[str]) -> list[str]:
    """The command that starts the run: Python itself, or `launch` of recipes/_launch.sh for several processes."""
    if _alone(manifest):
        return ["python", "-m", "drive_vlm", *command]
    return ["bash", "-euo", "pipefail", "-c", 'source "$0" && launch "$@"', str(_LAUNCH), *command]


def one_line(manifest: dict[str, Any], command: Sequence[str]) -> str:
    """Directory, environment and command as one line for a shell."""
    settings = [f"{name}={value}" for name, value in topology_variables(manifest).items()]
    return f"cd {shlex.quote(manifest['directory'])} && {shlex.join([*settings, *start_words(manifest, command)])}"


def run(manifest: dict[str, Any], command: Sequence[str]) -> int:
    """Run the command where the old run ran, with this Python and this code; its exit code."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    python_path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    env = {**os.environ, **topology_variables(manifest), "PATH": path, "PYTHONPATH": python_path}
    return subprocess.run(start_words(manifest, command), cwd=manifest["directory"], env=env, check=False).returncode


def differences(manifest: dict[str, Any]) -> Iterator[Difference]:
    """Everything that differs from the manifest; data files are read again in full."""
    yield from _code(manifest)
    then = manifest.get("file_hashes", {})
    for name, now in file_hashes(then, cached=False).items():
        if then[name] != now:
            yield Difference(f"file {name}", _short(then[name]), _short(now) if now else "missing")
    if "model_fingerprint" in manifest:
        yield from _model(manifest)
    yield from _each("version of", manifest.get("versions", {}), versions())
    yield from _each("variable", manifest.get("environment", {}), environment(), decides=False)
    yield from _each("machine:", manifest.get("machine", {}), machine(), decides=False)


def _code(manifest: dict[str, Any]) -> Iterator[Difference]:
    if manifest.get("code_hash") == code_hash():
        return
    then, now = manifest.get("git") or {}, git_state() or {}
    yield Difference("code", _git_text(then, manifest.get("code_hash")), _git_text(now, code_hash()))


def _git_text(state: dict[str, Any], sources: str | None) -> str:
    if "commit" not in state:
        return f"sources {_short(sources)}"
    changed = f" + diff {_short(state['diff_hash'])} (run.diff)" if "diff_hash" in state else ""
    return f"commit {state['commit'][:12]}{changed}"


def _model(manifest: dict[str, Any]) -> Iterator[Difference]:
    then = manifest["model_fingerprint"]
    now = model_fingerprint(then["name"])
    for key in sorted((then.keys() | now.keys()) - {"name"}):
        if then.get(key) != now.get(key):
            yield Difference(f"model {then['name']}: {key}", _short(then.get(key)), _short(now.get(key)))


def _each(what: str, then: dict[str, Any], now: dict[str, Any], decides: bool = True) -> Iterator[Difference]:
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            yield Difference(f"{what} {key}", _text(then.get(key)), _text(now.get(key)), decides)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


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
