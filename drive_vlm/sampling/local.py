"""Answers of a model in this process, from pictures or from a feature cache."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.config import DataConfig, ModelConfig
from drive_vlm.data.predictions import Answer
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.launch.topology import read_topology

if TYPE_CHECKING:
    import torch

    from drive_vlm.data.encoder import Encoder
    from drive_vlm.models.family import Family


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are drawn: temperature 0 takes the likeliest token; `on_bad_row` is "error" or "skip"."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    on_bad_row: str = "error"


def batches_of(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Batches of similar length, so that little is spent on padding."""
    ordered = sorted(samples, key=lambda sample: sum(len(turn.text) for turn in sample.turns))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def batch_seed(seed: int, batch: Sequence[Sample]) -> int:
    """The seed of a batch's sampling: 63 bits of a hash of `seed` and the rows' ids."""
    text = json.dumps([seed, *(sample.id for sample in batch)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class AnsweringModel:
    """A model of this process, as it stands, that answers samples. LocalModel loads one; a training hands in its own.

    Args:
        family: its tokenizer and picture side.
        network: what generates; its mode (evaluation), and the weights that it needs, are the caller's care.
        encoder: makes prompts of rows.
        take_vision: vision tensors of rows -> those of a batch.
        device, dtype: of the network.
        trains: whether the network goes on to train, so that no tensor of inference mode may stay in it.
    """

    trains = False

    def __init__(
        self,
        family: "Family",
        network: Any,
        encoder: "Encoder",
        take_vision: Callable[[list[dict[str, Any]]], dict[str, Any]],
        device: "torch.device",
        dtype: "torch.dtype",
        trains: bool = False,
    ) -> None:
        self.family, self.network, self.encoder, self.take_vision = family, network, encoder, take_vision
        self.device, self.dtype, self.trains = device, dtype, trains

    def answers(
        self,
        batches: Sequence[Sequence[Sample]],
        sampling: Sampling,
        bad: list[BadRow],
        between: Callable[[], None] = lambda: None,
        grammar: str | None = None,
    ) -> Iterator[tuple[Sample, Answer]]:
        """Rows that cannot be encoded are added to `bad` with on_bad_row skip, else raised. `between` is called before each
        batch. `grammar`: what every answer must follow, in the form of llguidance (sampling/grammar.py)."""
        from rich.progress import track

        from drive_vlm.sampling.grammar import Grammar

        held = (
            Grammar(grammar, self.family.tokenizer, end_tokens(self.network, self.family.tokenizer))
            if grammar is not None
            else None
        )
        for batch in track(batches, "answering", disable=not read_topology().is_main):
            between()
            yield from self.answer_batch(batch, sampling, bad, held)

    def answer_batch(
        self, batch: Sequence[Sample], sampling: Sampling, bad: list[BadRow], held: Any = None
    ) -> list[tuple[Sample, Answer]]:
        """The answers of one batch, which depend on the rows in it and on `sampling.seed` alone. It seeds torch's generators.

        `held`: the Grammar of the answers.
        """
        import torch
        from transformers import LogitsProcessorList

        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            # The model's own distribution: without these transformers keeps 50 tokens, or what the model's files say.
            options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            options |= {"top_k": 0, "min_p": None, "repetition_penalty": 1.0}
        encoded = []
        for sample in batch:
            try:
                encoded.append((sample, self.encoder.encode(sample, sample.columns["_max_tiles"], prompt=True)))
            except BadRow as error:
                if sampling.on_bad_row == "error":
                    raise
                bad.append(error)
        if not encoded:
            return []
        torch.manual_seed(batch_seed(sampling.seed, batch))
        if held is not None:
            options["logits_processor"] = LogitsProcessorList([held.begin()])
        texts = self._generate([features for _, features in encoded], sampling.max_new_tokens, options)
        return list(zip((sample for sample, _ in encoded), texts, strict=True))

    def _generate(self, rows: list[dict[str, Any]], max_new_tokens: int, sampling: dict[str, Any]) -> list[Answer]:
        import torch

        tokenizer = self.family.tokenizer
        inputs = {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in left_padded(rows, tokenizer.pad_token_id, self.take_vision).items()
        }
        # Of a model that trains, a module may keep what it has computed, and the next backward pass cannot take what was
        # made in inference mode. Such a model's configuration also says use_cache false.
        if self.trains:
            sampling = sampling | {"use_cache": True, "synced_gpus": False}
        with torch.no_grad() if self.trains else torch.inference_mode():
            tokens = self.network.generate(
                **inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
            )
        said = tokens[:, inputs["input_ids"].shape[1] :]
        # A row that ended before the longest of its batch is filled up behind its end token.
        ends = torch.tensor(end_tokens(self.network, tokenizer), device=said.device)
        cut = ~torch.isin(said, ends).any(dim=1) & (said.shape[1] >= max_new_tokens)
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            Answer(text.strip(), "length" if end else "stop") for text, end in zip(texts, cut.tolist(), strict=True)
        ]


class LocalModel(AnsweringModel):
    """A model loaded to answer samples, on the rank's GPU where there is one."""

    def __init__(
        self, model: ModelConfig, data: DataConfig, blank_images: bool = False, shuffle_frames: bool = False
    ) -> None:
        import torch

        from drive_vlm.data.encoder import Encoder
        from drive_vlm.models import load_family
        from drive_vlm.sampling.features import take_features
        from drive_vlm.sampling.vision import vision_taker

        cuda = torch.cuda.is_available()
        device = torch.device("cuda", read_topology().local_rank) if cuda else torch.device("cpu")
        dtype = getattr(torch, model.dtype) if model.dtype != "auto" else torch.bfloat16 if cuda else torch.float32
        family = load_family(model, dtype)
        features, _ = take_features(family, model, data, keep=False)
        take_vision, _ = vision_taker(family, data)
        encoder = Encoder(
            family.tokenizer,
            family.template,
            family.vision,
            data.num_frames,
            blank_images=blank_images,
            features=features,
            shuffle_frames=shuffle_frames,
        )
        super().__init__(family, family.model.to(device).eval(), encoder, take_vision, device, dtype)


def end_tokens(network: Any, tokenizer: Any) -> list[int]:
    """The tokens at which `generate` of this model stops."""
    ends = network.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [int(ends)]


def left_padded(
    rows: list[dict[str, Any]], pad_id: int, take_vision: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> dict[str, Any]:
    """input_ids and attention_mask int64[B, T] padded on the left, where generation needs it, and the vision tensors."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row["input_ids"]) :] = torch.from_numpy(row["input_ids"])
        mask[i, width - len(row["input_ids"]) :] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        **take_vision([row["vision"] for row in rows if row["vision"]]),
    }
