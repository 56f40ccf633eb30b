"""Train a small SigLIP vision tower on the synthetic world's boxes: it stands in for SigLIP2 where no weights can be had.

Reads a folder of tools/build_synthetic.py with its truth, learns which objects (and which light, weather and time of day) each
patch shows, prints the average precision on held-out frames, and writes a SiglipVisionModel with its image processor for
`tools/build_siglip_qwen.py --vision_tower DIR`. Such a tower knows the synthetic world and nothing else.
"""

import json
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
"""
# Share of a patch, or of the object, that must lie in the other for the patch to show the object.
_LEAST_SHARE = 0.3


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/train_tower.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", type=Path, required=True, help="folder that build_synthetic.py wrote, clips as folders of frames")
    add("--out", type=Path, required=True, help="directory for the tower")
    flag("--max_steps", 1000, "optimizer steps")
    flag("--batch_size", 64, "frames a step")
    flag("--learning_rate", 1.5e-3, "peak of the cosine schedule")
    flag("--patch_size", 8, "side of a patch in pixels")
    flag("--hidden_size", 128, "width, a multiple of 32")
    flag("--layers", 3, "layers")
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


def patch_labels(truths: list[dict[str, Any]], names: list[str], side: int, args: Any) -> np.ndarray:
    """bool[N, side * side, labels]: what each patch of each frame shows."""
    found = np.zeros((len(truths), side, side, len(names)), dtype=bool)
    number = {name: i for i, name in enumerate(names)}
    patch = args.patch_size
    starts = np.arange(side) * patch
    for n, truth in enumerate(truths):
        for name, box in labels_of(truth, args.turns):
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


def train(args: Any) -> dict[str, Any]:
    import torch
    from rich.progress import track
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(args.seed)
    splits = load(args.data)
    if not {"train", "test"} <= splits.keys():
        raise ValueError(f"--data {args.data}: needs the splits train and test, has {', '.join(sorted(splits))}")
    pictures, truths = splits["train"]
    size = pictures.shape[1]
    if size % args.patch_size or args.hidden_size % 32:
        raise ValueError(f"--patch_size must divide the frames' {size} pixels, and --hidden_size be a multiple of 32")
    side = size // args.patch_size
    names = sorted({name for truth in truths for name, _ in labels_of(truth, args.turns)})
    config = SiglipVisionConfig(
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 32,
        image_size=size,
        patch_size=args.patch_size,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config).to(args.device)
    # One head reads single patches, the other their mean: a projector that pools whole frames must find the objects too.
    head, pooled_head = (torch.nn.Linear(args.hidden_size, len(names)).to(args.device) for _ in range(2))
    weights = [*tower.parameters(), *head.parameters(), *pooled_head.parameters()]
    optimizer = torch.optim.AdamW(weights, args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_steps, pct_start=0.1)
    targets = torch.from_numpy(patch_labels(truths, names, side, args))
    frames = torch.from_numpy(pictures)
    order = torch.Generator().manual_seed(args.seed)
    bce, losses = torch.nn.functional.binary_cross_entropy_with_logits, []
    for _ in track(range(args.max_steps), "training"):
        pick = torch.randint(len(frames), (args.batch_size,), generator=order)
        features = tower(pixels(frames[pick], args.device)).last_hidden_state
        shown = targets[pick].to(args.device).float()
        loss = bce(head(features), shown) + bce(pooled_head(features.mean(1)), shown.amax(1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    precision = average_precision(tower, pooled_head, splits["test"], names, side, args)
    tower.save_pretrained(args.out)
    SiglipImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(args.out)
    return {"loss": losses[-1], "average_precision": precision, "frames": len(frames), "steps": args.max_steps}


def pixels(frames: "torch.Tensor", device: str) -> "torch.Tensor":
    """uint8[N, H, W, 3] -> float[N, 3, H, W] in -1..1, as SigLIP's image processor makes it."""
    return (frames.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def average_precision(
    tower: Any, head: Any, held_out: tuple[np.ndarray, list[dict[str, Any]]], names: list[str], side: int, args: Any
) -> dict[str, float]:
    """Of each label on held-out frames (at most 1,000), read from the mean of a frame's patches."""
    import torch
    from sklearn.metrics import average_precision_score

    pictures, truths = held_out[0][:1000], held_out[1][:1000]
    scores = []
    with torch.inference_mode():
        for part in torch.from_numpy(pictures).split(args.batch_size):
            scores.append(head(tower(pixels(part, args.device)).last_hidden_state.mean(1)).cpu().numpy())
    shown = np.any(patch_labels(truths, names, side, args), axis=1)
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
