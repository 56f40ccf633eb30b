"""Log-probabilities on disk belong to one reference and to one way from files to pixels."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from drive_vlm.data.caches import reference_cache
from drive_vlm.data.encoder import Encoder


def test_files_decoded_in_another_way_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    encoder = Encoder(tokenizer, "{{ messages }}", None)
    model = [{"name": "m", "config": "c", "weights": "w"}]
    reference_cache.ReferenceCache.start(tmp_path, reference_cache.reference_settings(model, "float32", encoder))
    reference_cache.ReferenceCache.start(tmp_path, reference_cache.reference_settings(model, "float32", encoder))
    now = reference_cache.TRANSFORM
    monkeypatch.setattr(reference_cache, "TRANSFORM", now + 1)
    with pytest.raises(ValueError, match=rf"made with other settings \(transform: {now} then, {now + 1} now"):
        reference_cache.ReferenceCache.start(tmp_path, reference_cache.reference_settings(model, "float32", encoder))
