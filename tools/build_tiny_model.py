"""Write a tiny random InternVL (the real classes, tokenizer and processor, small sizes) for trials without a download."""

import json
from pathlib import Path

from drive_vlm.config import CommandParser

EXAMPLES = """
python tools/build_tiny_model.py --out runs/tiny --corpus data/train.jsonl
python tools/build_tiny_model.py --out runs/tiny --corpus data/train.jsonl --image_size 64 --patch_size 8 --hidden_size 128
"""


def parse() -> tuple[CommandParser, dict]:
    parser = CommandParser(description=__doc__, examples=EXAMPLES)
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--corpus", nargs="+", required=True, help="JSONL rows whose words train the tokenizer")
    parser.add_argument("--image_size", type=int, default=56, help="pixels of a tile's side")
    parser.add_argument("--patch_size", type=int, default=7, help="pixels of a patch's side")
    parser.add_argument("--hidden_size", type=int, default=64, help="width of tower and language model")
    parser.add_argument("--vision_layers", type=int, default=2, help="layers of the vision tower")
    parser.add_argument("--text_layers", type=int, default=2, help="layers of the language model")
    parser.add_argument("--max_tiles", type=int, default=4, help="tiles a row may use for its pictures")
    parser.add_argument("--vocab_size", type=int, default=2000, help="tokens of the tokenizer, at most")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    return parser, vars(parser.parse_args())


def main() -> None:
    parser, flags = parse()
    out, paths = flags.pop("out"), flags.pop("corpus")
    try:
        from drive_vlm.data.jsonl import JsonlFile
        from drive_vlm.models.tiny import build_tiny_internvl, corpus_of

        corpus = corpus_of(row for path in paths for row in JsonlFile(Path(path)))
        build_tiny_internvl(out, corpus, **flags)
    except ValueError as error:
        parser.error(str(error))
    config = json.loads((Path(out) / "config.json").read_text())
    print(
        f"{out}: {config['architectures'][0]}, vocabulary {config['text_config']['vocab_size']}, random weights (seed {flags['seed']})"
    )


if __name__ == "__main__":
    main()
