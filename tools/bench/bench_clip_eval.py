"""Speed of our CLIP scores beside torchmetrics' `clip_score`, on one CLIP and the same JPEG files.

A random transformers CLIPModel (ViT-B/32 in size unless flags say otherwise) serves torchmetrics; its weights,
converted, make the open_clip model that ours runs. Every picture has several questions, as in DriveLM. Both sides
decode the pictures, use the same batch size and the same number of torch threads; torchmetrics is called as its
documentation shows, on batches of pictures and texts. What differs: ours encodes each distinct picture and text once
and leaves out padding; torchmetrics encodes every pair. Exit code 1 when the scores differ by more than 1e-4.
"""

import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/bench/bench_clip_eval.py --json runs/bench_clip_eval.json
python tools/bench/bench_clip_eval.py --pictures 64 --layers 6 --threads 1
"""
TOLERANCE = 1e-4
SUBJECTS = ("car", "truck", "bus", "pedestrian", "cyclist", "traffic light", "traffic cone", "stop sign")
PLACES = ("in front of", "to the left of", "to the right of", "behind", "to the front left of", "to the back right of")
QUESTIONS = (
    "What are the important objects in the current scene?",
    "What is the moving status of the {subject} {place} the ego vehicle?",
    "Would the {subject} {place} the ego vehicle be in its moving direction?",
    "What actions could the ego vehicle take based on the {subject} {place} it, and why take this action?",
    "Is there a {subject} {place} the ego vehicle?",
    "Predict the behavior of the ego vehicle.",
)


def parse() -> CommandParser:
    parser = CommandParser(prog="python tools/bench/bench_clip_eval.py", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--pictures", type=int, default=32, help="different pictures")
    parser.add_argument("--questions", type=int, default=6, help="texts for each picture, at most 6")
    parser.add_argument("--batch_size", type=int, default=32, help="of both sides")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side, in turns; the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads of both sides")
    parser.add_argument("--layers", type=int, default=12, help="layers of each tower")
    parser.add_argument("--vision_width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--text_width", type=int, default=512, help="a multiple of 64; also the embedding size")
    parser.add_argument("--image_size", type=int, default=224, help="side of the pictures and of the model's input")
    parser.add_argument("--json", help="write the measurement to this file")
    return parser


def random_clip(args: Any) -> Any:
    """A transformers CLIPModel with seeded random weights; defaults are the sizes of ViT-B/32."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    shared = {"num_hidden_layers": args.layers, "hidden_act": "gelu", "projection_dim": args.text_width}
    text = {"hidden_size": args.text_width, "num_attention_heads": args.text_width // 64, "vocab_size": 49408}
    special = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = {"hidden_size": args.vision_width, "num_attention_heads": args.vision_width // 64, "patch_size": 32}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**text, **special, **shared, "intermediate_size": 4 * args.text_width},
        vision_config={
            **vision,
            **shared,
            "image_size": args.image_size,
            "intermediate_size": 4 * args.vision_width,
        },
        projection_dim=args.text_width,
    )
    return CLIPModel(config).eval()


def peer_processor(image_size: int) -> Any:
    """transformers' own CLIPProcessor with open_clip's byte-pair vocabulary, made without the hub."""
    from open_clip import SimpleTokenizer
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    bpe = SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(token, token): number for token, number in bpe.encoder.items()}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(bpe.bpe_ranks))
    size, crop = {"shortest_edge": image_size}, {"height": image_size, "width": image_size}
    return CLIPProcessor(CLIPImageProcessor(size=size, crop_size=crop), tokenizer)


def returning_tensors(hf_model: Any) -> Any:
    """What torchmetrics 1.9 needs under transformers 5: features as tensors instead of output objects."""
    import torch

    class ReturnsTensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip, self.config = hf_model, hf_model.config

        def get_image_features(self, *args: Any) -> torch.Tensor:
            return self.clip.get_image_features(*args).pooler_output

        def get_text_features(self, *args: Any) -> torch.Tensor:
            return self.clip.get_text_features(*args).pooler_output

    return ReturnsTensors().eval()


def make_data(folder: Path, args: Any) -> list[tuple[Path, str]]:
    """(JPEG, question) pairs, picture by picture. The pictures have the model's input size, so that no resize differs
    between the two libraries (open_clip resizes with Pillow, transformers with torchvision)."""
    import numpy as np
    from PIL import Image

    generator, words = np.random.default_rng(0), random.Random(0)
    pairs = []
    for index in range(args.pictures):
        coarse = generator.integers(0, 256, size=(7, 7, 3), dtype=np.uint8)
        path = folder / f"{index:05d}.jpg"
        size = (args.image_size, args.image_size)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        for question in QUESTIONS[: args.questions]:
            pairs.append((path, question.format(subject=words.choice(SUBJECTS), place=words.choice(PLACES))))
    return pairs


def peer_scores(pairs: list[tuple[Path, str]], batch_size: int, model: Any, processor: Any) -> list[float]:
    """Mean cosine of each batch by torchmetrics, which returns max(0, 100 cos) averaged over the batch."""
    import torch
    from PIL import Image
    from torchmetrics.functional.multimodal import clip_score
    from torchvision.transforms.functional import pil_to_tensor

    scores = []
    with torch.inference_mode():
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            images = [pil_to_tensor(Image.open(path).convert("RGB")) for path, _ in batch]
            texts = [text for _, text in batch]
            scores.append(clip_score(images, texts, model_name_or_path=lambda: (model, processor)).item() / 100)
    return scores


def our_scores(pairs: list[tuple[Path, str]], batch_size: int, encoder: Any) -> list[float]:
    """Cosine of each pair."""
    from drive_vlm.clip.score import cosine

    texts = encoder.encode_texts([text for _, text in pairs], batch_size).features
    return cosine(texts, encoder.encode_images([path for path, _ in pairs], batch_size, workers=1)).tolist()


def max_difference(pairs: list[tuple[Path, str]], ours: list[float], peer: list[float], args: Any, call: Any) -> float:
    """Largest |ours - peer| over the means of all batches and over single pairs of the first two pictures.

    Raises ValueError when no score is above 0: torchmetrics clamps there, and nothing would be compared.
    """
    means = [statistics.fmean(ours[i : i + args.batch_size]) for i in range(0, len(ours), args.batch_size)]
    singles = range(min(len(pairs), 2 * args.questions))
    compared = list(zip(means, peer, strict=True)) + [(ours[i], call([pairs[i]])[0]) for i in singles]
    if not any(theirs > 0 for _, theirs in compared):
        raise ValueError("every score of torchmetrics is clamped to 0 with these sizes; choose other ones")
    return max(abs(max(0.0, mine) - theirs) for mine, theirs in compared)


def run(args: Any) -> dict[str, Any]:
    """Measure both; returns what --json holds."""
    import torch

    from drive_vlm.clip.convert import encoder_from_transformers

    torch.set_num_threads(args.threads)
    hf_model = random_clip(args)
    encoder, processor = encoder_from_transformers(hf_model), peer_processor(args.image_size)
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_data(Path(folder), args)
        orient_positive(hf_model, encoder, pairs)
        model = returning_tensors(hf_model)
        our_scores(pairs[: args.questions], args.batch_size, encoder)
        peer_scores(pairs[: args.questions], args.batch_size, model, processor)
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(args.repeats):
            started = time.perf_counter()
            ours = our_scores(pairs, args.batch_size, encoder)
            seconds["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            peer = peer_scores(pairs, args.batch_size, model, processor)
            seconds["peer"].append(time.perf_counter() - started)
        call = lambda part: peer_scores(part, 1, model, processor)  # noqa: E731
        difference = max_difference(pairs, ours, peer, args, call)
    rates = {side: len(pairs) / statistics.median(times) for side, times in seconds.items()}
    return {
        "ours": rates["ours"],
        "peer": rates["peer"],
        "ratio": rates["ours"] / rates["peer"],
        "unit": "image-text pairs/s",
        "max_abs_difference": difference,
        "score_sd": statistics.pstdev(ours),
        "seconds": seconds,
        "pairs": len(pairs),
        "distinct": {"pictures": args.pictures, "texts": len({text for _, text in pairs})},
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "torchmetrics", "transformers")},
    }


def orient_positive(hf_model: Any, encoder: Any, pairs: list[tuple[Path, str]]) -> None:
    """Flip the sign of both models' picture projection when the cosines are negative: torchmetrics clamps at 0, and a
    random CLIP gives nearly the same cosine to every pair."""
    import torch

    if statistics.fmean(our_scores(pairs[:8], 8, encoder)) < 0:
        with torch.no_grad():
            hf_model.visual_projection.weight.neg_()
            encoder.model.visual.proj.neg_()


def print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, distinct = result["settings"], result["distinct"]
    title = f"{result['pairs']} pairs, batches of {settings['batch_size']}, {settings['threads']} threads"
    table = Table(title=title, title_justify="left")
    for column in ("", "pairs/s", "seconds (all runs)"):
        table.add_column(column, justify="left" if not column else "right")
    for side, name in (("ours", "drive-vlm on open_clip"), ("peer", "torchmetrics clip_score")):
        table.add_row(name, f"{result[side]:.1f}", " ".join(f"{value:.2f}" for value in result["seconds"][side]))
    Console(width=100).print(table)
    print(
        f"ratio {result['ratio']:.2f}, largest difference of scores {result['max_abs_difference']:.1e} "
        f"(scores spread by {result['score_sd']:.1e})"
    )
    print(
        f"ours encoded {distinct['pictures']} pictures and {distinct['texts']} texts, "
        f"torchmetrics {result['pairs']} of each; decoding is in both times"
    )


def main() -> None:
    parser = parse()
    args = parser.parse_args()
    try:
        if not 1 <= args.questions <= len(QUESTIONS):
            raise ValueError(f"--questions {args.questions}: 1 to {len(QUESTIONS)}")
        result = run(args)
    except ValueError as error:
        parser.error(str(error))
    print_table(result)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    if result["max_abs_difference"] > TOLERANCE:
        sys.exit(f"the scores differ by {result['max_abs_difference']:.1e}, more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
