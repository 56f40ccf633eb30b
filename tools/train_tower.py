"""Train a small vision tower on the synthetic world's boxes: it stands in for published weights where none can be had.

Reads a folder of tools/build_synthetic.py with its truth, learns which objects (and which light, weather and time of day) each
patch shows, and prints the average precision on held-out frames. It writes a SiglipVisionModel with its image processor for
`tools/build_siglip_qwen.py --vision_tower DIR`; with --model it trains the tower and projector that a small model has, such as one
of tools/build_tiny_model.py, and writes that model. Such a tower knows the synthetic world and nothing else.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_vlm.builders.splits import assign_split
from drive_vlm.config import CommandParser, run_tool

if TYPE_CHECKING:
    import torch

EXAMPLES = """
python tools/train_tower.py --data data/synthetic --out runs/tower
python tools/train_tower.py --data data/synthetic --out runs/tower --max_steps 3000 --layers 6 --device cuda
python tools/train_tower.py --data data/synthetic --model runs/tiny_qwen3_vl --out runs/seeing_qwen3_vl
"""
# Share of a patch, or of the object, that must lie in the other for the patch to show the object.
_LEAST_SHARE = 0.3


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/train_tower.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", type=Path, required=True, help="folder that build_synthetic.py wrote, clips as folders of frames")
    add("--out", type=Path, required=True, help="directory for the tower")
    add("--model", type=Path, help="train the tower and projector of this model; --out is the whole model")
    flag("--max_steps", 1000, "optimizer steps")
    flag("--batch_size", 64, "frames a step")
    flag("--learning_rate", 1.5e-3, "peak of the cosine schedule")
    flag("--patch_size", 8, "side of a patch of a new tower, in pixels")
    flag("--hidden_size", 128, "width of a new tower, a multiple of 32")
    flag("--layers", 3, "layers of a new tower")
    flag("--turns", False, "learn lane lines, painted arrows and turn signals too, on which BDD-OIA's turns depend")
    flag("--seed", 0, "of weights and order")
    flag("--device", "cpu", "cpu, cuda, cuda:1 ...")
    add("--json", type=Path, help="write losses and precision to this file")
    return parser


def frames_of(data: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(split, picture, truth) of every frame, as scenes.jsonl lists them. Raises ValueError for a folder without it, and for videos."""
    if not (data / "scenes.jsonl").is_file():
        raise ValueError(f"--data {data}: no scenes.jsonl. Build it with tools/build_synthetic.py.")
    build = json.loads((data / "build.json").read_text())
    if build["clip_format"] != "frames" and build["clips"]:
        raise ValueError(f"--data {data}: its clips are video files. Build it with --clip_format frames.")
    places: dict[str, int] = {}
    for line in (data / "scenes.jsonl").open():
        truth = json.loads(line)
        if "video" in truth:
            place = places[truth["video"]] = places.get(truth["video"], -1) + 1
            path = data / truth["video"] / f"{place:02d}.{build['image_format']}"
        else:
            path = data / truth["image"]
        yield assign_split(truth["group"], build["fractions"], build["seed"]), path, truth


def labels_of(truth: dict[str, Any], turns: bool) -> Iterator[tuple[str, tuple[float, ...] | None]]:
    """(label, box in pixels; None for the whole frame); with `turns` what tells whether a turn is allowed as well."""
    if turns:
        for name in ("left", "right", "lane_arrow"):
            yield f"{name} {truth[name]}", None
    yield truth["time"], None
    yield truth["weather"], None
    for thing in truth["objects"]:
        yield thing["name"], tuple(thing["box"])
        yield thing["color"], tuple(thing["box"])
        yield f"{thing['name']} {thing['state']}", tuple(thing["box"])
        if turns and thing["signal"] != "none":
            yield f"{thing['name']} signals {thing['signal']}", tuple(thing["box"])


def patch_labels(truths: list[dict[str, Any]], names: list[str], side: int, patch: float, turns: bool) -> np.ndarray:
    """bool[N, side * side, labels]: what each patch of each frame shows; `patch` is its side in pixels."""
    found = np.zeros((len(truths), side, side, len(names)), dtype=bool)
    number = {name: i for i, name in enumerate(names)}
    starts = np.arange(side) * patch
    for n, truth in enumerate(truths):
        for name, box in labels_of(truth, turns):
            if name not in number:
                continue
            if box is None:
                found[n, :, :, number[name]] = True
                continue
            wide = np.clip(np.minimum(starts + patch, box[2]) - np.maximum(starts, box[0]), 0, None)
            high = np.clip(np.minimum(starts + patch, box[3]) - np.maximum(starts, box[1]), 0, None)
            shared = high[:, None] * wide[None]
            area = max(1.0, (box[2] - box[0]) * (box[3] - box[1]))
            found[n, :, :, number[name]] |= shared >= _LEAST_SHARE * min(area, patch * patch)
    return found.reshape(len(truths), side * side, len(names))


def load(data: Path) -> dict[str, tuple[np.ndarray, list[dict[str, Any]]]]:
    """{split: (uint8[N, H, W, 3], truths)}."""
    from rich.progress import track

    from drive_vlm.data.vision import load_image

    pictures: dict[str, list[np.ndarray]] = {}
    truths: dict[str, list[dict[str, Any]]] = {}
    for split, path, truth in track(list(frames_of(data)), "reading"):
        pictures.setdefault(split, []).append(np.asarray(load_image(str(path), str(path))))
        truths.setdefault(split, []).append(truth)
    return {split: (np.stack(found), truths[split]) for split, found in pictures.items()}


class NewTower:
    """A SigLIP tower with random weights."""

    def __init__(self, size: int, args: Any) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        if size % args.patch_size or args.hidden_size % 32:
            raise ValueError(
                f"--patch_size must divide the frames' {size} pixels, and --hidden_size be a multiple of 32"
            )
        config = SiglipVisionConfig(
            hidden_size=args.hidden_size,
            intermediate_size=4 * args.hidden_size,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden_size // 32,
            image_size=size,
            patch_size=args.patch_size,
            vision_use_head=False,
        )
        self.size, self.trained = size, SiglipVisionModel(config).to(args.device)

    def __call__(self, frames: "torch.Tensor") -> "torch.Tensor":
        """float[N, L, D] of uint8[N, H, W, 3], in the order of rows of patches."""
        # In -1..1, as SigLIP's image processor makes it.
        pixels = frames.to(self.trained.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.trained(pixels.contiguous()).last_hidden_state

    def save(self, out: Path) -> None:
        from transformers import SiglipImageProcessor

        self.trained.save_pretrained(out)
        sizes = {"height": self.size, "width": self.size}
        SiglipImageProcessor(size=sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(out)


class OwnTower:
    """The tower and projector of a model, read as its language model reads them: one feature for each image token."""

    def __init__(self, path: Path, args: Any) -> None:
        import torch

        for name in ("patch_size", "hidden_size", "layers"):
            if getattr(args, name) != make_parser().get_default(name):
                raise ValueError(f"--{name} is of a new tower; that of --model {path} has its own")

        from drive_vlm.config import ModelConfig
        from drive_vlm.models import load_family

        family = load_family(ModelConfig(model=str(path)), torch.float32)
        self.processor, self.model = family.processor, family.model.to(args.device).train()
        if family.vision is None:
            raise ValueError(f"--model {path}: the model has no vision tower")
        names = [name for part in ("vision_tower", "projector") for name in family.spec.parts[part]]
        self.trained = torch.nn.ModuleList([self.model.get_submodule(name) for name in names])

    def __call__(self, frames: "torch.Tensor") -> "torch.Tensor":
        """float[N, L, D] of uint8[N, H, W, 3], in the order of rows of tokens."""
        import torch

        taken = self.processor.image_processor(images=list(frames.permute(0, 3, 1, 2)), return_tensors="pt")
        found = self.model.get_image_features(**taken.to(self.model.device)).pooler_output
        return torch.stack(list(found)) if isinstance(found, tuple | list) else found

    def save(self, out: Path) -> None:
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)


def train(args: Any) -> dict[str, Any]:
    import torch
    from rich.progress import track

    torch.manual_seed(args.seed)
    splits = load(args.data)
    if not {"train", "test"} <= splits.keys():
        raise ValueError(f"--data {args.data}: needs the splits train and test, has {', '.join(sorted(splits))}")
    pictures, truths = splits["train"]
    frames = torch.from_numpy(pictures)
    tower = OwnTower(args.model, args) if args.model else NewTower(pictures.shape[1], args)
    with torch.no_grad():
        found = tower(frames[:2])
    if found.shape[0] != 2 or found.ndim != 3:
        raise ValueError(f"--model {args.model}: makes more than one picture of a frame of {pictures.shape[1]} pixels")
    _, tokens, width = found.shape
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"--model {args.model}: {tokens} features of a frame are no square of patches")
    names = sorted({name for truth in truths for name, _ in labels_of(truth, args.turns)})
    # One head reads single patches, the other their mean: a projector that pools whole frames must find the objects too.
    head, pooled_head = (torch.nn.Linear(width, len(names)).to(args.device) for _ in range(2))
    weights = [*tower.trained.parameters(), *head.parameters(), *pooled_head.parameters()]
    optimizer = torch.optim.AdamW(weights, args.learning_rate, weight_decay=0.01)
    # OneCycleLR divides by the steps of its first part less one.
    warmup = 0.2 if args.max_steps == 10 else 0.1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_steps, pct_start=warmup)
    patch = pictures.shape[1] / side
    targets = torch.from_numpy(patch_labels(truths, names, side, patch, args.turns))
    order = torch.Generator().manual_seed(args.seed)
    bce, losses = torch.nn.functional.binary_cross_entropy_with_logits, []
    for _ in track(range(args.max_steps), "training"):
        pick = torch.randint(len(frames), (args.batch_size,), generator=order)
        features = tower(frames[pick])
        shown = targets[pick].to(args.device).float()
        loss = bce(head(features), shown) + bce(pooled_head(features.mean(1)), shown.amax(1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    held_out, shown_there = splits["test"][0][:1000], splits["test"][1][:1000]
    labels = np.asarray(patch_labels(shown_there, names, side, patch, args.turns).any(1))
    precision = average_precision(tower, pooled_head, torch.from_numpy(held_out), labels, names, args.batch_size)
    tower.save(args.out)
    return {"loss": losses[-1], "average_precision": precision, "frames": len(frames), "steps": args.max_steps}


def average_precision(
    tower: NewTower | OwnTower, head: Any, frames: "torch.Tensor", shown: np.ndarray, names: list[str], batch_size: int
) -> dict[str, float]:
    """Of each label that held-out frames show, `shown` bool[N, labels], read from the mean of a frame's patches."""
    import torch
    from sklearn.metrics import average_precision_score

    with torch.inference_mode():
        scores = [head(tower(part).mean(1)).cpu().numpy() for part in frames.split(batch_size)]
    found = np.concatenate(scores)
    return {
        name: float(average_precision_score(shown[:, i], found[:, i]))
        for i, name in enumerate(names)
        if shown[:, i].any()
    }


def show(result: dict[str, Any], args: Any) -> None:
    precision = result["average_precision"]
    names = sorted(precision, key=lambda name: -precision[name])
    print("average precision on held-out frames: " + ", ".join(f"{name} {precision[name]:.2f}" for name in names))
    print(
        f"{args.out}: trained on {result['frames']:,} frames, {result['steps']:,} steps, last loss {result['loss']:.4f}"
    )


if __name__ == "__main__":
    run_tool(make_parser(), train, show)
