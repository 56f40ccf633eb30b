"""LLaMA-Factory and ms-swift next to ours: where they are, what they are asked, and whether they train the same.

Their pins clash with ours, so each runs in an environment of its own, named as `--peers llamafactory=PYTHON swift=PYTHON`;
`peer_child.py` is what runs there. Each trains as it comes, padded, and packed: LLaMA-Factory with `--neat_packing`, ms-swift
with `--packing`, whose check for a flash attention kernel is lifted (no CPU has one). Both run with `sdpa`.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measure

CHILD = measure.BENCH / "peer_child.py"
# Rows of the one step that is compared before anything is timed: two periods of the mixed rows.
CHECKED = 16
# The picture path is measured on what a driving camera gives and on InternVL's own tiles: eight and the thumbnail.
PICTURE_SIZE, TILE, MAX_TILES, TILES = (900, 1600), 448, 12, 9
# float32 sums in another order; a row that sees another row, or a picture of other pixels, is off by more.
LOSS_TOLERANCE = 1e-4


class PeerSpec(NamedTuple):
    """A peer: its name in print, its package, and how its packing mode is called."""

    title: str
    package: str
    packing: str


SPECS = {
    "llamafactory": PeerSpec("LLaMA-Factory", "llamafactory", "--neat_packing"),
    "swift": PeerSpec("ms-swift", "ms-swift", "--packing"),
}


@dataclasses.dataclass(frozen=True)
class Peer:
    """An entry of --peers whose interpreter has its package; `versions` are those of what it trains with."""

    name: str
    python: str
    versions: Mapping[str, str | None]

    @property
    def spec(self) -> PeerSpec:
        return SPECS[self.name]


def peer_word(text: str) -> str:
    """The type of --peers: NAME=PYTHON with a known name. Raises ArgumentTypeError."""
    name, sign, python = text.partition("=")
    if name not in SPECS or not sign or not python:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no NAME=PYTHON, with a name of {', '.join(SPECS)} and the Python of the environment that has it"
        )
    return text


def find_peers(words: Sequence[str], family: str) -> list[Peer]:
    """The peers of --peers. Raises ValueError for a family that they are not compared on, and where one cannot run."""
    if words and family != "internvl":
        raise ValueError(f"--peers compares on --family internvl, which all of them train, not on {family}.")
    found = [find_peer(*word.split("=", 1)) for word in words]
    names = [peer.name for peer in found]
    if len(set(names)) < len(names):
        raise ValueError(f"--peers names {' and '.join(names)}: name each peer once.")
    return found


def find_peer(name: str, python: str) -> Peer:
    """The peer whose package `python` has. Raises ValueError with the way out."""
    spec, path = SPECS[name], Path(python).expanduser()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ValueError(
            f"--peers {name}={python}: no such program. Name the python of the environment that has {spec.title}."
        )
    asked = [path, CHILD, "facts", spec.package, "torch", "transformers", "accelerate"]
    done = subprocess.run(
        [str(word) for word in asked], check=False, capture_output=True, text=True, env=_environment({})
    )
    if done.returncode:
        raise ValueError(
            f"--peers {name}={python} is no Python that runs: {(done.stderr.strip() or 'no output').splitlines()[-1]}"
        )
    versions = json.loads(done.stdout)
    if versions[spec.package] is None:
        raise ValueError(
            f"--peers {name}={python} has no package {spec.package}. Install {spec.title} there: {python} -m pip install {spec.package}"
        )
    return Peer(name, str(path), versions)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` (default: ours) without our Python path: a peer must not import what is meant for us."""
    return {name: value for name, value in (env or os.environ).items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


# ---- rows


def write_rows(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """The `rows` (conversations, pictures relative to `folder`) as both peers read them.

    ms-swift's template writes the newline after a picture itself, and wants absolute paths.
    """
    measure.write_json_lines(folder / f"{name}.jsonl", rows)
    measure.write_json_lines(folder / f"{name}.swift.jsonl", [_swift_row(folder, row) for row in rows])
    info = folder / "dataset_info.json"
    known = json.loads(info.read_text()) if info.exists() else {}
    columns = {"messages": "conversations", "images": "image"}
    known[name] = {"file_name": f"{name}.jsonl", "formatting": "sharegpt", "columns": columns}
    info.write_text(json.dumps(known))


def _swift_row(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    roles = {"human": "user", "gpt": "assistant"}
    turns = [
        {"role": roles[turn["from"]], "content": turn["value"].replace("<image>\n", "<image>")}
        for turn in row["conversations"]
    ]
    return {"messages": turns, "images": [str(folder / name) for name in row.get("image", [])]}


# ---- jobs


class Bench:
    """The peers at work on the rows, the model and the plan in `work`; `threads` and `workers` are those of all sides."""

    def __init__(self, peers: Sequence[Peer], work: Path, args: Any, training: Mapping[str, Any]) -> None:
        self.peers, self.work, self.args, self.training = peers, work, args, dict(training)
        self.env = _environment(measure.environment(work, args.threads))

    def sides(self) -> dict[str, tuple[Peer, bool]]:
        """{side: (peer, packed)}: each peer as it comes, and packed."""
        return {f"{peer.name}{'_packed' * packed}": (peer, packed) for peer in self.peers for packed in (False, True)}

    def titles(self) -> dict[str, str]:
        return {
            side: f"{peer.spec.title} {peer.spec.packing}" if packed else peer.spec.title
            for side, (peer, packed) in self.sides().items()
        }

    def job(self, side: str, out: Path, **changes: Any) -> Path:
        """Write what `side` is asked; its output goes to `out`."""
        packed = side.endswith("_packed")
        values = {
            "model": str(self.work / "model"),
            "folder": str(self.work / "data"),
            "rows": "mixed",
            "packed": packed,
            "max_length": self.args.max_length,
            "tiles": 1,
            "batch": 1,
            "accumulate": 1,
            "workers": self.args.workers,
            "steps": -1,
            "encoded": False,
            "pad_id": padding_id(self.work / "model"),
            "training": self.training,
            "out": str(out),
        }
        file = out.with_suffix(".job.json")
        file.write_text(json.dumps(values | changes))
        return file

    def start(self, peer: Peer, action: str, jobs: Sequence[Path], log: Path) -> dict[str, float]:
        return measure.start([peer.python, CHILD, peer.name, action, *jobs], log, self.env)

    def check(self) -> list[Path]:
        """Let each side take one step on the first rows, with all that the peers made of them; the files it wrote."""
        write_rows(self.work / "data", "checked", measure.json_lines(self.work / "data" / "mixed.jsonl")[:CHECKED])
        write_rows(self.work / "data", "mixed", measure.json_lines(self.work / "data" / "mixed.jsonl"))
        outs = {side: self.work / f"check_{side}.json" for side in self.sides()}
        for peer in self.peers:
            own = [
                self.job(side, outs[side], rows="checked", batch=CHECKED, steps=1, encoded=not packed, workers=0)
                for side, (of, packed) in self.sides().items()
                if of is peer
            ]
            self.start(peer, "train", own, self.work / f"check_{peer.name}.log")
        return list(outs.values())

    def train(self, side: str, repeat: int, plan: dict[str, Any]) -> dict[str, float]:
        """One epoch of `side`: rates from the end of step 1 to the end of the last one. Raises ValueError where rows are missing."""
        peer, packed = self.sides()[side]
        out = self.work / f"{side}{repeat}.json"
        # ms-swift lays the packs of a batch end to end; as a batch of one, several times a step, its masks stay small.
        laid = packed and peer.name == "swift"
        batch = plan["batch"]["ours" if packed else "peer"]
        job = self.job(side, out, batch=1 if laid else batch, accumulate=batch if laid else 1)
        used = self.start(peer, "train", [job], out.with_suffix(".log"))
        return used_rates(used) | peer_rates(json.loads(out.read_text()), plan, self.titles()[side])

    def pictures(self, peer: Peer, repeat: int, model: Path) -> dict[str, Any]:
        """Milliseconds of a row of one camera picture, from JPEG to collated tiles, in one process."""
        out = self.work / f"pictures_{peer.name}{repeat}.json"
        changes = {"model": str(model), "folder": str(self.work / "pictures"), "rows": "pictures", "max_length": 8192}
        job = self.job(peer.name, out, tiles=MAX_TILES, workers=0, **changes)
        self.start(peer, "pictures", [job], out.with_suffix(".log"))
        return json.loads(out.read_text())


def padding_id(model: Path) -> int:
    """The id of the padding token of the tiny `model`, which no row holds."""
    return int(json.loads((model / "config.json").read_text())["text_config"]["pad_token_id"])


def used_rates(used: Mapping[str, float]) -> dict[str, float]:
    """Peak memory, and the processor seconds of the whole run: imports, preparation and saving too."""
    return {"peak_rss_mb": used["peak_rss_mb"], "run_cpu_seconds": used["cpu_seconds"]}


def cpu_ms_per_row(cpu_seconds: float, tokens: float, plan: Mapping[str, Any]) -> float:
    """Processor milliseconds of a row of mean length: packs hold few long rows or many short ones, so tokens are counted."""
    return 1000 * cpu_seconds / (tokens / plan["lengths"]["mean"])


def peer_rates(run: dict[str, Any], plan: dict[str, Any], title: str) -> dict[str, float]:
    """The rates of what peer_child.py wrote. Raises ValueError when a row or a token of the data was not trained."""
    if (run["all"]["rows"], run["all"]["tokens"]) != (plan["rows"], plan["tokens"]):
        raise ValueError(
            f"{title} trained {run['all']['rows']} rows of {run['all']['tokens']} tokens, the data holds {plan['rows']} of "
            f"{plan['tokens']}: its figures would not be comparable. Look at its log in --work."
        )
    timed = run["timed"]
    if run["steps"] < 3:
        raise ValueError(
            f"{title} took only {run['steps']} steps: raise --rows, so that something follows the warm-up step"
        )
    return {
        "samples_per_second": timed["rows"] / timed["seconds"],
        "tokens_per_second": timed["tokens"] / timed["seconds"],
        "cpu_ms_per_row": cpu_ms_per_row(timed["cpu_seconds"], timed["tokens"], plan),
        "seconds": timed["seconds"],
        "steps": run["steps"],
        "tokens_per_step": timed["tokens"] / (run["steps"] - 1),
        "widest": run["widest"],
        "first_loss": run["losses"][0],
    }


# ---- the same training


def compare_runs(
    runs: Mapping[str, dict[str, Any]], ours: Sequence[dict[str, list[int]]], loss_of: Callable[[], float]
) -> dict[str, Any]:
    """What the one checked step of each side held, next to ours: token ids, labels, and the loss before the first update.

    `ours` are our encoded rows, `loss_of()` our model's mean loss over the same learned tokens. The peers learn one token more a
    row, the template's newline after the end of the turn. Raises ValueError for the first difference beyond that.
    """
    expected = sorted((row["input_ids"], row["labels"][:-1] + row["input_ids"][-1:]) for row in ours)
    tokens = sum(len(ids) for ids, _ in expected)
    learned = sum(label != -100 for _, labels in expected for label in labels)
    loss = loss_of()
    for side, run in runs.items():
        found = sorted((row["input_ids"], row["labels"]) for row in run["encoded"])
        for number, (theirs, wanted) in enumerate(zip(found, expected, strict=True) if found else ()):
            for name, one, other in zip(("input_ids", "labels"), theirs, wanted, strict=True):
                if one != other:
                    raise ValueError(
                        f"{side}: {name} of row {number} (in order of its tokens) differ from ours: {len(one)} tokens against {len(other)}. "
                        "The two sides would not train the same; a version of the peer may have another template."
                    )
        counted = run["all"]
        if (counted["tokens"], counted["learned"]) != (tokens, learned):
            raise ValueError(
                f"{side} trained {counted['tokens']} tokens and learned {counted['learned']} of them, ours are {tokens} and {learned}."
            )
        if abs(run["losses"][0] / loss - 1) > LOSS_TOLERANCE:
            raise ValueError(f"{side}: the loss of step 1 is {run['losses'][0]:.6f}, ours on the same rows {loss:.6f}.")
    return {
        "rows": len(expected),
        "tokens": tokens,
        "learned": learned,
        "loss": loss,
        "losses": {s: r["losses"][0] for s, r in runs.items()},
    }


def mean_loss(family: Any, encoder: Any, rows: Sequence[dict[str, Any]]) -> float:
    """Mean cross-entropy of `family.model` over the answers of the encoded `rows`, each alone and with its last newline learned."""
    import torch

    from drive_vlm.data.collate import Collator

    collate = Collator(pad_id=encoder.tokenizer.pad_token_id, vision=encoder.vision, pad_to_multiple_of=1)
    total, count = 0.0, 0
    for row in rows:
        batch = collate([[row]])
        inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and name != "labels"}
        labels = batch["labels"].clone()
        labels[0, -1] = batch["input_ids"][0, -1]
        with torch.no_grad():
            logits = family.model(**inputs).logits[:, :-1].flatten(0, 1)
        total += float(
            torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
        )
        count += int((labels[:, 1:] != -100).sum())
    return total / count


def check_against_ours(work: Path, files: Sequence[Path]) -> None:
    """Write checked.json: the one step of each side, next to our rows and model. Raises ValueError where they differ."""
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_family

    family = load_family(ModelConfig(model=str(work / "model")), torch.float32)
    family.model.eval()
    encoder = Encoder(family.tokenizer, family.template, family.vision)
    table = build_table(open_sources([str(work / "data" / "checked.jsonl")]), encoder)
    rows = [encoder.encode(table.sample(i)) for i in range(len(table))]
    ours = [{name: row[name].tolist() for name in ("input_ids", "labels")} for row in rows]
    runs = {file.stem.removeprefix("check_"): json.loads(file.read_text()) for file in files}
    found = compare_runs(runs, ours, lambda: mean_loss(family, encoder, rows))
    (work / "checked.json").write_text(json.dumps(found))


# ---- the picture path


def write_pictures(work: Path, count: int) -> None:
    """`count` pictures of a driving camera's size in work/pictures, as JPEG, and rows that ask one question of each."""
    import numpy as np
    from PIL import Image

    from drive_vlm.builders.synthetic.render import render
    from drive_vlm.builders.synthetic.sample import make_scene

    folder = work / "pictures"
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        drawn = render(make_scene(0, i, PICTURE_SIZE)).astype(np.int16)
        # A rendered scene is smoother than a camera's: noise gives its JPEG the size and the work of a photograph.
        noise = np.random.default_rng(i).normal(0, 6, drawn.shape).round().astype(np.int16)
        Image.fromarray(np.clip(drawn + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=85)
        turns = [{"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": "a car"}]
        rows.append({"id": str(i), "image": [f"{i}.jpg"], "conversations": turns})
    write_rows(folder, "pictures", rows)


def our_pictures(work: Path, model: Path, out: Path) -> None:
    """Our data set and collator on the pictures, one row at a time, as a loader's worker runs them."""
    import peer_child

    from drive_vlm.config import ModelConfig
    from drive_vlm.data.collate import Collator, EncodedRows
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(model)))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    table = build_table(open_sources([str(work / "pictures" / "pictures.jsonl")]), encoder)
    dataset, collate = EncodedRows(table, encoder), Collator(parts.tokenizer.pad_token_id, parts.vision)
    peer_child.write_pictures({"out": str(out)}, (collate([dataset[(i,)]]) for i in range(len(table))))


def measure_pictures(bench: Bench, count: int, repeats: int) -> dict[str, Any]:
    """{side: wall_ms, cpu_ms of a row, ...}, ours and the peers in turns. Raises ValueError where they do not make the same tiles."""
    write_pictures(bench.work, count)
    sizes = {"image_size": TILE, "patch_size": 14, "hidden_size": 32, "vision_layers": 1, "text_layers": 1}
    rows = bench.work / "pictures" / "pictures.jsonl"
    model = measure.build_tiny(bench.work, "picture_model", rows, **sizes, max_tiles=MAX_TILES, vocab_size=400)

    def ours(repeat: int) -> dict[str, Any]:
        out = bench.work / f"pictures_ours{repeat}.json"
        command = [sys.executable, measure.BENCH / "bench_sft.py", "--child", "pictures", bench.work, model, out]
        measure.start(command, out.with_suffix(".log"), measure.environment(bench.work, bench.args.threads))
        return json.loads(out.read_text())

    sides: dict[str, Callable[[int], dict[str, Any]]] = {"ours": ours}
    for peer in bench.peers:
        sides[peer.name] = lambda repeat, peer=peer: bench.pictures(peer, repeat, model)  # type: ignore[misc]
    found = measure.compare(measure.in_turns(sides, repeats), "ours")
    for side, values in found.items():
        if values["tiles"] != TILES:
            raise ValueError(f"{side} cut a picture into {values['tiles']:.0f} tiles, not into {TILES}.")
    weight = sum(file.stat().st_size for file in (bench.work / "pictures").glob("*.jpg")) / count / 1000
    return {"sides": found, "pictures": count, "size": PICTURE_SIZE, "jpeg_kb": weight}


# ---- what is printed


def against(sides: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{side: how much faster ours is, in wall tokens/s and in processor time of a row}."""
    ours = sides["ours"]
    return {
        side: {
            "tokens_per_second": ours["tokens_per_second"] / found["tokens_per_second"],
            "cpu_ms_per_row": found["cpu_ms_per_row"] / ours["cpu_ms_per_row"],
        }
        for side, found in sides.items()
        if side != "ours"
    }


def best_peer(sides: Mapping[str, Any]) -> str:
    """The side next to ours that takes least processor time for a row: it varies less than wall time on a shared machine."""
    return min((side for side in sides if side != "ours"), key=lambda side: sides[side]["cpu_ms_per_row"])


def show(result: Mapping[str, Any]) -> None:
    """The table of all sides, the best peer, and the picture path."""
    from drive_vlm.report.tables import print_table

    rows = []
    for side, title in result["titles"].items():
        found, faster = result[side], result["against"].get(side, {"tokens_per_second": 1.0, "cpu_ms_per_row": 1.0})
        numbers = [
            f"{found[name]:,.0f}" for name in ("tokens_per_second", "cpu_ms_per_row", "tokens_per_step", "peak_rss_mb")
        ]
        rows.append([title, *numbers, *(f"{faster[name]:.2f}x" for name in ("tokens_per_second", "cpu_ms_per_row"))])
    head = ("", "tokens/s", "CPU ms a row", "tokens a step", "peak RSS MB", "ours, tokens/s", "ours, CPU of a row")
    print_table("drive-vlm next to its peers", head, rows)
    best = result["best_peer"]
    faster = result["against"][best]
    print(
        f"best peer: {result['titles'][best]}; ours is {faster['cpu_ms_per_row']:.2f}x in rows per CPU second and "
        f"{faster['tokens_per_second']:.2f}x in tokens/s"
    )
    checked = result["checked"]
    print(
        f"checked: token ids, labels and the loss of step 1 ({checked['loss']:.4f}) of {checked['rows']} rows are the same on all sides; "
        "the peers learn the newline behind each answer too"
    )
    for name, versions in result["peer_versions"].items():
        print(f"{SPECS[name].title}:", ", ".join(f"{package} {version}" for package, version in versions.items()))
    if "picture_path" in result:
        _show_pictures(result["picture_path"])


def _show_pictures(path: Mapping[str, Any]) -> None:
    from drive_vlm.report.tables import print_table

    titles = {"ours": "drive-vlm"} | {name: spec.title for name, spec in SPECS.items()}
    rows = [
        [
            titles[side],
            f"{found['wall_ms']:.1f}",
            f"{found['cpu_ms']:.1f}",
            found["runs"][0]["dtype"],
            f"{found['ratio']['cpu_ms']:.2f}x",
        ]
        for side, found in path["sides"].items()
    ]
    height, width = path["size"]
    title = f"{width} x {height} JPEG of {path['jpeg_kb']:.0f} KB to {TILES} tiles of {TILE} pixels, one row"
    print_table(title, ("", "ms a row", "CPU ms a row", "pixels", "CPU next to ours"), rows)
