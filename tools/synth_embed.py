"""Step 3 of synthesis: the boxes and regions of each picture as vectors, by which synth_retrieve.py finds their names.

An object is seen in a crop with some context, and where it has a mask also with its background greyed; the mean of the two counts.
Vectors are float16 of length 1 in OUT.vectors.npy; a line's items name their rows. Embedders: an open_clip model, or the picture side
of SigLIP, SigLIP 2, CLIP or DINOv2 of transformers.
"""

from pathlib import Path
from typing import Any

from synth_steps import embedder_flags, embedder_settings, show_step

from drive_vlm.config import CommandParser, run_tool
from drive_vlm.launch.stop import listening

EXAMPLES = """
python tools/synth_embed.py --data segment.jsonl --model google/siglip2-base-patch16-224 --out embed.jsonl
python tools/synth_embed.py --data segment.jsonl --clip_model ViT-B-32 --out embed.jsonl --shard 0/8
torchrun --nproc_per_node 8 tools/synth_embed.py --data segment.jsonl --model facebook/dinov2-small --out embed.jsonl
python tools/synth_embed.py --merge embed.shard-*-of-08.jsonl --out embed.jsonl
"""


def make_parser() -> CommandParser:
    from drive_vlm.builders.synthesis.step import step_flags

    parser = CommandParser(prog="python tools/synth_embed.py", description=__doc__, examples=EXAMPLES)
    step_flags(parser, batch_size=8)
    embedder_flags(parser)
    return parser


def counts(line: dict[str, Any]) -> dict[str, int]:
    sources = [item["source"] for item in line["items"]]
    return {"vectors of boxes": sources.count("box"), "vectors of regions": sources.count("region")}


def run(args: Any) -> dict[str, Any] | None:
    """Embed, or merge shards; the audit."""
    from drive_vlm.builders.synthesis.embed import PACKED, Views, embedding, store_vectors
    from drive_vlm.builders.synthesis.embedders import embedder_fingerprint, open_embedder
    from drive_vlm.builders.synthesis.step import Make, Step, merge_steps, run_step

    fields = ("items", PACKED)
    if args.merge:
        step = Step("embed", {}, {}, fields, counts, store=store_vectors)
        return merge_steps(step, args.merge, Path(args.out))
    named = args.model, args.clip_model, args.clip_pretrained
    model = embedder_fingerprint(*named)

    def open_make() -> Make:
        return embedding(open_embedder(*named, args.crops, args.dtype), Views(args.context, args.least_side))

    step = Step("embed", embedder_settings(args), {"embedder": model}, fields, counts, store=store_vectors)
    return run_step(step, args, open_make)


def main() -> None:
    with listening():
        run_tool(make_parser(), run, show_step)


if __name__ == "__main__":
    main()
