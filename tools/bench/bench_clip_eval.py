"""Speed of our CLIP scores next to torchmetrics' `clip_score`, on one CLIP and the same JPEG files.

A random transformers CLIPModel (ViT-B/32 in size unless flags say otherwise) serves torchmetrics; its weights,
converted, make the open_clip model that ours runs. Every picture has several questions, as in DriveLM. Both sides
decode the pictures, use the same batch size and the same number of torch threads; torchmetrics is called as its
documentation shows, on batches of pictures and texts. What differs: ours encodes each distinct picture and text once
and leaves out padding; torchmetrics encodes every pair. Exit code 1 when the scores differ by more than 1e-4.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure

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
NUMBERS = {
    "pictures": (32, 1, "different pictures; each has six texts"),
    "batch_size": (32, 1, "of both sides"),
    "repeats": (3, 1, "timed runs of each side, in turns; the median counts"),
    "threads": (os.cpu_count() or 1, 1, "torch threads of both sides"),
    "layers": (12, 1, "layers of each tower"),
    "vision_width": (768, 1, "a multiple of 64"),
    "text_width": (512, 1, "a multiple of 64; also the embedding size"),
    "image_size": (224, 1, "side of the pictures and of the model's input"),
}


def make_parser() -> Any:
    return measure.bench_parser("bench_clip_eval", __doc__, EXAMPLES, NUMBERS)


def random_clip(args: Any) -> Any:
    """A transformers CLIPModel with seeded random weights; defaults are the sizes of ViT-B/32."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    def tower(width: int, **own: int) -> dict[str, Any]:
        shared = {"num_hidden_layers": args.layers, "hidden_act": "gelu", "projection_dim": args.text_width}
        sizes = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
        return shared | sizes | own

    text = tower(args.text_width, vocab_size=49408, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    vision = tower(args.vision_width, patch_size=32, image_size=args.image_size)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=args.text_width)
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
        for question in QUESTIONS:
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


def max_difference(
    pairs: list[tuple[Path, str]], ours: list[float], peer: list[float], batch_size: int, call: Any
) -> float:
    """Largest |ours - peer| over the means of all batches and over single pairs of the first two pictures.

    Raises ValueError when no score is above 0: torchmetrics clamps there, and nothing would be compared.
    """
    means = [statistics.fmean(ours[i : i + batch_size]) for i in range(0, len(ours), batch_size)]
    singles = range(min(len(pairs), 2 * len(QUESTIONS)))
    compared = list(zip(means, peer, strict=True)) + [(ours[i], call([pairs[i]])[0]) for i in singles]
    if not any(theirs > 0 for _, theirs in compared):
        raise ValueError("every score of torchmetrics is clamped to 0 with these sizes; choose other ones")
    return max(abs(max(0.0, mine) - theirs) for mine, theirs in compared)


def run(args: Any, work: Path) -> dict[str, Any]:
    """Both sides in turns, after one run each that does not count."""
    import torch

    from drive_vlm.clip.convert import encoder_from_transformers

    torch.set_num_threads(args.threads)
    hf_model = random_clip(args)
    encoder, processor = encoder_from_transformers(hf_model), peer_processor(args.image_size)
    pairs = make_data(work, args)
    orient_positive(hf_model, encoder, pairs)
    model = returning_tensors(hf_model)
    sides: dict[str, Callable[[Any, int], list[float]]] = {
        "ours": lambda part, size: our_scores(part, size, encoder),
        "peer": lambda part, size: peer_scores(part, size, model, processor),
    }
    scores = {}

    def timed(side: str, repeat: int) -> dict[str, float]:
        started = time.perf_counter()
        scores[side] = sides[side](pairs, args.batch_size)
        return {"pairs_per_second": len(pairs) / (time.perf_counter() - started)}

    runs = measure.in_turns({side: partial(timed, side) for side in sides}, args.repeats, warm_up=1)
    difference = max_difference(
        pairs, scores["ours"], scores["peer"], args.batch_size, lambda part: sides["peer"](part, 1)
    )
    return measure.compare(runs, "peer") | {
        "max_abs_difference": difference,
        "score_sd": statistics.pstdev(scores["ours"]),
        "pairs": len(pairs),
        "distinct": {"pictures": args.pictures, "texts": len({text for _, text in pairs})},
    }


def orient_positive(hf_model: Any, encoder: Any, pairs: list[tuple[Path, str]]) -> None:
    """Flip the sign of both models' picture projection when the cosines are negative: torchmetrics clamps at 0, and a
    random CLIP gives nearly the same cosine to every pair."""
    import torch

    if statistics.fmean(our_scores(pairs[:8], 8, encoder)) < 0:
        with torch.no_grad():
            hf_model.visual_projection.weight.neg_()
            encoder.model.visual.proj.neg_()


def show(result: dict[str, Any], args: Any) -> str | None:
    """Print the rates; the exit status where the two sides do not agree."""
    title = f"{result['pairs']} pairs, batches of {args.batch_size}, {args.threads} threads"
    names = {"ours": "drive-vlm on open_clip", "peer": "torchmetrics clip_score"}
    measure.print_sides(title, result, names, {"pairs_per_second": ("pairs/s", ".1f")})
    difference, distinct = result["max_abs_difference"], result["distinct"]
    print(f"largest difference of scores {difference:.1e} (scores spread by {result['score_sd']:.1e})")
    print(
        f"ours encoded {distinct['pictures']} pictures and {distinct['texts']} texts, "
        f"torchmetrics {result['pairs']} of each; decoding is in both times"
    )
    return f"the scores differ by {difference:.1e}, more than {TOLERANCE:.0e}" if difference > TOLERANCE else None


if __name__ == "__main__":
    measure.run_bench(make_parser(), run, show, peers=("torchmetrics", "open_clip_torch"))
