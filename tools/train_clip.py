"""Train a small open_clip model on one's own pictures and captions, for machines where no CLIP weights can be had.

Reads rows {"image", "caption_short", "caption_long"} (pictures relative to the file's folder), trains both towers from
scratch with open_clip's contrastive loss, prints the retrieval on held-out pictures next to chance, and writes a
directory for `tools/clip_eval.py --clip_model DIR`. Such a model knows the pictures it was trained on and nothing
else: its scores compare checkpoints on the same kind of data, and must not be compared with published CLIP scores.
"""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, run_tool

if TYPE_CHECKING:
    import torch

EXAMPLES = """
python tools/train_clip.py --data data/captions_train.jsonl --out runs/clip
python tools/train_clip.py --data data/captions_train.jsonl --out runs/clip --max_steps 2000 --width 256 --device cuda
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/train_clip.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--data", required=True, help="JSONL rows {image, caption_short, caption_long}")
    add("--out", required=True, help="directory for configuration and weights")
    flag("--num_train_epochs", 10, "passes over the training pictures")
    add("--max_steps", type=int, help="optimizer steps instead of --num_train_epochs")
    flag("--batch_size", 64, "pictures in one contrastive batch")
    flag("--learning_rate", 5e-4, "peak of the cosine schedule")
    flag("--held_out_share", 0.1, "share of the groups kept for the retrieval test")
    flag("--image_size", 64, "side of the square picture in pixels")
    flag("--patch_size", 8, "side of a patch in pixels")
    flag("--width", 128, "width of both towers, a multiple of 64")
    flag("--layers", 3, "layers of each tower")
    flag("--seed", 0, "of weights, split and order")
    flag("--workers", 2, "threads that decode pictures")
    flag("--device", "cpu", "cpu, cuda, cuda:1 ...")
    add("--json", help="write losses, retrieval and settings to this file")
    return parser


def model_config(image_size: int, patch_size: int, width: int, layers: int) -> dict[str, Any]:
    """open_clip_config.json of a small CLIP. Pictures are squashed to a square: nothing at their sides is cut off."""
    if width % 64 or image_size % patch_size:
        raise ValueError(
            f"--width {width} must be a multiple of 64 and --image_size {image_size} of --patch_size {patch_size}"
        )
    return {
        "model_cfg": {
            "embed_dim": width,
            "custom_text": True,
            "vision_cfg": {"image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers},
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": width,
                "heads": width // 64,
                "layers": layers,
            },
        },
        "preprocess_cfg": {"size": image_size, "resize_mode": "squash", "interpolation": "bicubic"},
    }


def read_captions(path: Path) -> list[dict[str, Any]]:
    """Rows with `image` (an absolute path), `captions` (one or two texts) and `group`; errors name file:line."""
    from drive_vlm.data.jsonl import JsonlFile
    from drive_vlm.data.samples import resolve_below

    rows = []
    for where, row in JsonlFile(path).places():
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
        captions = [row.get(key) for key in ("caption_short", "caption_long") if row.get(key)]
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f'{where}: the row needs a text "caption_short" or "caption_long"')
        image = resolve_below(str(path.parent), row.get("image"), where)
        if not Path(image).is_file():
            raise ValueError(f"{where}: the picture {image} does not exist; paths are relative to {path.parent}")
        rows.append({"image": image, "captions": captions, "group": str(row.get("group", image))})
    return rows


def split_rows(rows: list[dict[str, Any]], held_out: float, seed: int) -> tuple[list, list]:
    """(training, held out): whole groups, so that no held-out scene was seen."""
    import random

    groups = sorted({row["group"] for row in rows})
    random.Random(seed).shuffle(groups)
    kept = set(groups[: max(1, round(held_out * len(groups)))])
    training, test = [[row for row in rows if (row["group"] in kept) is side] for side in (False, True)]
    if len(training) < 2 or len(test) < 2:
        raise ValueError(
            f"{len(rows)} rows in {len(groups)} groups give {len(training)} to train and {len(test)} to test; "
            "both need at least 2: give more rows or another --held_out_share"
        )
    return training, test


def load_pixels(encoder: Any, rows: list[dict[str, Any]], workers: int) -> "torch.Tensor":
    """pixel_values float[N, 3, H, W] of all rows, held in memory: 49 KB a picture at 64 pixels."""
    import torch

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return torch.stack(list(pool.map(encoder.read_image, [Path(row["image"]) for row in rows])))


def train(model: Any, pixels: "torch.Tensor", captions: list["torch.Tensor"], args: Any) -> list[float]:
    """Contrastive training in place; returns the loss of every step. captions[v]: int64[N, context], variant v of each picture."""
    import torch
    from open_clip import ClipLoss
    from rich.console import Console
    from rich.progress import track

    from drive_vlm.clip.encoder import encode_tokens

    generator = torch.Generator().manual_seed(args.seed)
    batch_size = min(args.batch_size, len(pixels))
    per_epoch = len(pixels) // batch_size
    steps = args.max_steps or args.num_train_epochs * per_epoch
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / steps)),
    )
    loss_function, losses = ClipLoss(), []
    for step in track(range(steps), "training CLIP", console=Console(stderr=True)):
        if step % per_epoch == 0:
            order = torch.randperm(len(pixels), generator=generator)
        rows = order[step % per_epoch * batch_size :][:batch_size]
        tokens = captions[step % len(captions)][rows].to(args.device)
        images = torch.nn.functional.normalize(model.encode_image(pixels[rows].to(args.device)), dim=-1)
        texts = torch.nn.functional.normalize(encode_tokens(model, tokens), dim=-1)
        loss = loss_function(images, texts, model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            # As in the CLIP paper, section 2.5.
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
    return losses


def retrieval(encoder: Any, pixels: "torch.Tensor", texts: list[str]) -> dict[str, float]:
    """Picture -> caption retrieval on held-out pictures: R@1 and R@5 with their chance.

    Pictures may share a caption, so a hit is a caption with the right words. With c copies of the right caption among
    N, chance is 1 - C(N - c, k) / C(N, k).
    """
    import torch

    with torch.inference_mode():
        images = torch.cat([encoder.model.encode_image(part, normalize=True) for part in pixels.split(256)]).cpu()
    similarity = images @ torch.from_numpy(encoder.encode_texts(texts).features).T
    names = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    labels = torch.tensor([names[text] for text in texts])
    copies, total = torch.bincount(labels)[labels].tolist(), len(texts)
    result: dict[str, float] = {"n": total, "distinct_captions": len(names)}
    for k in (1, 5):
        k_used = min(k, total)
        found = labels[similarity.topk(k_used, dim=1).indices] == labels[:, None]
        result[f"r_at_{k}"] = found.any(dim=1).float().mean().item()
        misses = [math.comb(total - count, k_used) / math.comb(total, k_used) for count in copies]
        result[f"chance_r_at_{k}"] = 1 - sum(misses) / total
    return result


def save(model: Any, config: dict[str, Any], directory: Path) -> None:
    from safetensors.torch import save_file

    from drive_vlm.clip.encoder import CONFIG_NAME, WEIGHTS_NAME

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS_NAME)
    (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def run(args: Any) -> dict[str, Any]:
    """Read, train, test, save; returns what --json holds."""
    import torch

    from drive_vlm.clip.encoder import ClipEncoder

    started = time.perf_counter()
    config = model_config(args.image_size, args.patch_size, args.width, args.layers)
    training, test = split_rows(read_captions(Path(args.data)), args.held_out_share, args.seed)
    torch.manual_seed(args.seed)
    encoder = ClipEncoder.from_config(config, args.device)
    pixels, test_pixels = (load_pixels(encoder, rows, args.workers) for rows in (training, test))
    variants = max(len(row["captions"]) for row in training)
    captions = [
        encoder.tokenizer([row["captions"][v % len(row["captions"])] for row in training]) for v in range(variants)
    ]
    loading = time.perf_counter() - started
    encoder.model.train()
    losses = train(encoder.model, pixels, captions, args)
    encoder.model.eval()
    found = retrieval(encoder, test_pixels.to(args.device), [row["captions"][-1] for row in test])
    save(encoder.model, config, Path(args.out))
    return {
        "out": args.out,
        "training_pictures": len(training),
        "held_out_pictures": len(test),
        "parameters": sum(p.numel() for p in encoder.model.parameters()),
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "retrieval": found,
        "loading_seconds": round(loading, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def show(result: dict[str, Any], args: Any) -> None:
    found = result["retrieval"]
    print(
        f"CLIP with {result['parameters'] / 1e6:.1f} M parameters, {result['steps']} steps on "
        f"{result['training_pictures']} pictures in {result['seconds']} s: "
        f"loss {result['first_loss']:.2f} -> {result['last_loss']:.2f}"
    )
    for k in (1, 5):
        print(
            f"held-out R@{k} {found[f'r_at_{k}']:.1%} (chance {found[f'chance_r_at_{k}']:.1%}, {found['n']} pictures, "
            f"{found['distinct_captions']} different captions)"
        )
    print(f"saved to {args.out}: python tools/clip_eval.py --clip_model {args.out} ...")


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
