"""A CLIP of open_clip as two encoders, of texts and of pictures.

Each distinct text and each distinct picture is encoded once. A text longer than the model's context is cut by its own
tokenizer, which keeps the end-of-text token in the last place (the text tower pools there), and is counted.
"""

import hashlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import load_image

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "ViT-B-32"
DEFAULT_PRETRAINED = {"ViT-B-32": "laion2b_s34b_b79k", "ViT-B-32-quickgelu": "openai"}
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
Progress = Callable[[int], None]


class ImageError(ValueError):
    """A picture that cannot be read; `path` names it, so that a caller can add the row it came from."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class TextFeatures:
    """features float[N, D], each of length 1; truncated bool[N]: the text was longer than the model's context."""

    features: np.ndarray
    truncated: np.ndarray


class ClipEncoder:
    """A CLIP model with its picture transform and tokenizer.

    `encoded_texts` and `encoded_images` count what went through the two towers, `name` says which model it is.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Any], "torch.Tensor"],
        tokenizer: Callable[..., "torch.Tensor"],
        device: str = "cpu",
        name: str = "",
    ) -> None:
        self.model = model.to(device).eval()
        self.preprocess, self.tokenizer, self.device, self.name = preprocess, tokenizer, device, name
        self.encoded_texts = self.encoded_images = 0

    @classmethod
    def load(cls, model: str = DEFAULT_MODEL, pretrained: str | None = None, device: str = "cpu") -> "ClipEncoder":
        """`model`: a name of open_clip ("ViT-B-32", "hf-hub:org/name") or a directory written by tools/train_clip.py.
        `pretrained`: a tag of open_clip (fetched from the hub) or a local weights file; a directory has its own.

        Weights are read from safetensors or with torch.load(weights_only=True). Raises ValueError when there are no
        weights to be had: a random CLIP gives numbers that mean nothing.
        """
        import open_clip

        if Path(model).is_dir():
            _check_directory(Path(model), pretrained)
            source = f"local-dir:{model}"
        else:
            source, pretrained = model, pretrained or DEFAULT_PRETRAINED.get(model)
            _check_weights_given(model, pretrained)
        name = f"{model} ({pretrained})" if pretrained else model
        try:
            with warnings.catch_warnings():
                # open_clip only warns about the wrong activation, and the scores are off: the user must name the
                # -quickgelu model.
                warnings.filterwarnings("error", message="QuickGELU mismatch")
                # Unlike create_model_and_transforms, this never returns a random model.
                network, preprocess = open_clip.create_model_from_pretrained(
                    source, pretrained, device=device, force_custom_text=True, weights_only=True
                )
            tokenizer = open_clip.get_tokenizer(source)
        except (RuntimeError, OSError, ValueError, KeyError, pickle.UnpicklingError, UserWarning) as error:
            raise ValueError(f"CLIP {name} cannot be loaded: {_first_line(error)}. {_WAYS_OUT}") from error
        return cls(network, preprocess, tokenizer, device, name)

    @classmethod
    def from_config(cls, config: dict[str, Any], device: str = "cpu") -> "ClipEncoder":
        """A model with fresh random weights from the contents of an open_clip_config.json: something to train."""
        import open_clip

        model = open_clip.CustomTextCLIP(
            **{key: value for key, value in config["model_cfg"].items() if key != "custom_text"}
        )
        preprocess_cfg = open_clip.transform.PreprocessCfg(**config["preprocess_cfg"])
        preprocess = open_clip.transform.image_transform_v2(preprocess_cfg, is_train=False)
        tokenizer = open_clip.SimpleTokenizer(context_length=config["model_cfg"]["text_cfg"]["context_length"])
        return cls(model, preprocess, tokenizer, device, "untrained")

    def encode_texts(
        self, texts: Sequence[str], batch_size: int = 256, progress: Progress | None = None
    ) -> TextFeatures:
        """float[N, D] of length 1 each, and bool[N] truncated; equal texts are encoded once, short ones together."""
        import torch

        distinct = list(dict.fromkeys(texts))
        position = {text: index for index, text in enumerate(distinct)}
        tokens, truncated = self._tokenize(distinct)
        order = token_lengths(self.model, tokens).argsort(stable=True)
        features: torch.Tensor | None = None
        for batch in order.split(batch_size):
            with torch.inference_mode():
                encoded = encode_tokens(self.model, tokens[batch].to(self.device))
                encoded = torch.nn.functional.normalize(encoded, dim=-1).float().cpu()
            features = encoded.new_empty(len(distinct), encoded.shape[1]) if features is None else features
            features[batch] = encoded
            self.encoded_texts += len(batch)
            if progress:
                progress(len(batch))
        if features is None:
            raise ValueError("no texts to encode")
        index = np.array([position[text] for text in texts])
        return TextFeatures(features.numpy()[index], truncated.numpy()[index])

    def encode_images(
        self, paths: Sequence[Path], batch_size: int = 64, workers: int = 2, progress: Progress | None = None
    ) -> np.ndarray:
        """float[N, D] of length 1 each. A picture is encoded once, even when it has several names: files are compared
        by their resolved path and then by a hash of their bytes. Raises ImageError for a broken picture.
        """
        import torch

        resolved = [path.resolve() for path in paths]
        names = list(dict.fromkeys(resolved))
        with ThreadPoolExecutor(max(1, workers)) as pool:
            digests = dict(zip(names, pool.map(_digest, names), strict=True))
            first_of = {digest: name for name, digest in reversed(digests.items())}
            distinct = list(dict.fromkeys(first_of[digest] for digest in digests.values()))
            features = []
            for pixel_values in self._pixel_batches(distinct, batch_size, pool):
                with torch.inference_mode():
                    encoded = self.model.encode_image(pixel_values.to(self.device), normalize=True)
                features.append(encoded.float().cpu())
                self.encoded_images += len(encoded)
                if progress:
                    progress(len(encoded))
        if not features:
            raise ValueError("no pictures to encode")
        position = {digests[name]: index for index, name in enumerate(distinct)}
        return torch.cat(features).numpy()[[position[digests[name]] for name in resolved]]

    def _tokenize(self, texts: list[str]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """int64[N, context] and bool[N] truncated. A row that fills the context is tokenized once more with one place
        more: it was cut when that place is taken too."""
        import torch

        tokens = self.tokenizer(texts)
        pad = self.tokenizer([""])[0, -1]
        truncated = torch.zeros(len(texts), dtype=torch.bool)
        full = (tokens[:, -1] != pad).nonzero().flatten()
        if len(full):
            longer = self.tokenizer([texts[index] for index in full.tolist()], context_length=tokens.shape[1] + 1)
            truncated[full] = longer[:, -1] != pad
        return tokens, truncated

    def _pixel_batches(self, paths: list[Path], batch_size: int, pool: ThreadPoolExecutor) -> Iterator["torch.Tensor"]:
        """pixel_values float[B, 3, H, W]; the next batch is decoded while this one is encoded."""
        import torch

        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        pending = [pool.submit(self.read_image, path) for path in batches[0]] if batches else []
        for following in [*batches[1:], []][: len(batches)]:
            current, pending = pending, [pool.submit(self.read_image, path) for path in following]
            yield torch.stack([future.result() for future in current])

    def read_image(self, path: Path) -> "torch.Tensor":
        """pixel_values float[3, H, W] of one file; raises ImageError when it cannot be decoded."""
        try:
            picture = load_image(str(path), str(path))
        except BadRow as error:
            raise ImageError(path, f"the picture cannot be decoded ({error.problem})") from error
        return self.preprocess(picture)


def encode_tokens(model: Any, tokens: "torch.Tensor") -> "torch.Tensor":
    """Text features float[N, D] (any length) of tokens int64[N, T], without the padding behind the longest text.

    Under a causal mask nothing behind the end-of-text token reaches it, so leaving the padding out changes nothing
    and costs a fraction. Towers that look both ways or pool elsewhere get all T tokens.
    """
    if not _pools_at_end_of_text(model):
        return model.encode_text(tokens)
    length = int(token_lengths(model, tokens).max())
    mask = model.text.attn_mask
    # Patch of open_clip's text tower for this call: it does not cut its causal mask to shorter input.
    model.text.attn_mask = mask[:length, :length]
    try:
        return model.encode_text(tokens[:, :length])
    finally:
        model.text.attn_mask = mask


def token_lengths(model: Any, tokens: "torch.Tensor") -> "torch.Tensor":
    """int64[N]: tokens up to and with the end-of-text token, the highest id (all T where the tower needs them all)."""
    if _pools_at_end_of_text(model):
        return tokens.argmax(dim=1) + 1
    return tokens.new_full((len(tokens),), tokens.shape[1])


def _pools_at_end_of_text(model: Any) -> bool:
    text = getattr(model, "text", None)
    causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
    return causal and getattr(text, "pool_type", None) == "argmax"


def _check_directory(directory: Path, pretrained: str | None) -> None:
    """Check that a local model directory is whole; it takes no other weights."""
    if pretrained:
        raise ValueError(f"{directory} has its own weights; leave out --clip_pretrained {pretrained}")
    if not (directory / CONFIG_NAME).is_file() or not (directory / WEIGHTS_NAME).is_file():
        raise ValueError(
            f"{directory} is not a CLIP directory: it needs {CONFIG_NAME} and {WEIGHTS_NAME} (tools/train_clip.py)"
        )


def _check_weights_given(model: str, pretrained: str | None) -> None:
    import open_clip

    if model.startswith("hf-hub:"):
        return
    known = open_clip.list_models()
    if model not in known:
        from drive_vlm.config import nearest

        raise ValueError(f"{model} is neither a directory nor a model of open_clip.{nearest(model, known)}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise ValueError(f"{model} needs weights: --clip_pretrained FILE or one of its tags: {', '.join(tags)}")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(f"no file and no tag {pretrained!r} of {model}; its tags: {', '.join(tags)}")


_WAYS_OUT = (
    "Without the hub give a local weights file (--clip_pretrained FILE), or train a small CLIP on your own captions "
    "(python tools/train_clip.py --data captions_train.jsonl --out DIR) and use it (--clip_model DIR)"
)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError as error:
        raise ImageError(path, f"the file cannot be read ({error.strerror})") from error
