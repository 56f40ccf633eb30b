r"""Lingo-Judge: a text classifier that says whether an answer to a driving question is right (Marcu et al., LingoQA, arXiv 2312.14115).

Source: wayveai/LingoQA, benchmark/judge.py (27250f7). The classifier (DeBERTa-v3 with one output) reads

    [CLS]\nQuestion: ...\nAnswer: ...\nStudent: ...

with one reference as Answer and the prediction as Student, both in lower case and stripped, cut at 128 tokens; the tokenizer puts a
second [CLS] in front. The score is the logit, of several references the highest; above 0 (a probability above 0.5) the answer is right.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HUB_NAME, MAX_TOKENS = "wayveai/Lingo-Judge", 128
GET = f"get it by `hf download {HUB_NAME} --local-dir Lingo-Judge` and give that folder"


def judge_input(cls_token: str, question: str, reference: str, prediction: str) -> str:
    """What the classifier reads. The question stays as it is.

    >>> judge_input("[CLS]", "Is it Red?", "Yes ", " NO")
    '[CLS]\\nQuestion: Is it Red?\\nAnswer: yes\\nStudent: no'
    """
    return (
        f"{cls_token}\nQuestion: {question}\nAnswer: {reference.lower().strip()}\nStudent: {prediction.lower().strip()}"
    )


class LingoJudge:
    """The classifier in a local directory. `truncated`: inputs so far that were cut at 128 tokens, which cuts the prediction."""

    def __init__(self, path: str, device: str = "cpu", batch_size: int = 16) -> None:
        """Raises ValueError for a directory without weights, without a head, or with another number of outputs than one."""
        from drive_vlm.models.loading import usable

        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path}: no directory with Lingo-Judge's config.json and weights; {GET}")
        self.path, self.device, self.batch_size, self.truncated = path, device, batch_size, 0
        with usable(path, "Lingo-Judge's files"):
            self.tokenizer, self.model = _load(path)
        self.model.to(device)

    def scores(
        self, questions: Sequence[str], references: Sequence[Sequence[str]], predictions: Sequence[str]
    ) -> np.ndarray:
        """float64[N]: the highest logit of each prediction over its references, each of which has at least one."""
        import torch

        assert all(references), "every question has a reference"
        asked = list(zip(questions, references, predictions, strict=True))
        texts = [
            judge_input(self.tokenizer.cls_token, q, target, said) for q, wanted, said in asked for target in wanted
        ]
        logits = np.empty(len(texts))
        # Inputs of one length together: less padding. The order of the scores stays that of the texts.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = [texts[place] for place in places]
            self.truncated += sum(len(ids) > MAX_TOKENS for ids in self.tokenizer(batch, verbose=False)["input_ids"])
            inputs = self.tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS)
            with torch.inference_mode():
                found = self.model(**inputs.to(self.device)).logits
            logits[places] = found[:, 0].double().cpu().numpy()
        ends = np.cumsum([len(wanted) for wanted in references])
        return np.array([part.max() for part in np.split(logits, ends[:-1])]) if len(asked) else np.empty(0)

    def describe(self) -> dict[str, Any]:
        from drive_vlm.store.fingerprint import model_fingerprint

        return {"model": model_fingerprint(self.path), "max_tokens": MAX_TOKENS}


def _load(path: str) -> tuple[Any, Any]:
    """(tokenizer, classifier in float32). transformers fills what a checkpoint lacks with random numbers: refused."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, local_files_only=True)
        model, about = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        shown = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: Lingo-Judge cannot be loaded ({shown}); {GET}") from error
    if missing := sorted(about["missing_keys"]):
        raise ValueError(
            f"{path}: the weights lack {len(missing)} of the classifier's parts, e.g. {missing[0]}: it is no Lingo-Judge; {GET}"
        )
    if model.config.num_labels != 1:
        raise ValueError(
            f"{path}: a classifier of {model.config.num_labels} classes; Lingo-Judge has one output; {GET}"
        )
    return tokenizer, model.eval()
