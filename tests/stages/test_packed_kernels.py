"""What the packed kernels are given: where rows end, once, and no dense mask. All but the kernel itself is the real thing."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import modeling_flash_attention_utils as flash_utils
from transformers.integrations import flex_attention as flex

from drive_vlm.config import ROW_ENDS, DataConfig, ModelConfig, RunConfig

FAMILIES = (
    "internvl", "siglip_qwen", "minicpmv", "cogvlm2", "llava_next", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows_file(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows: two with a picture, one with two, two without."""
    rows = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:5]]
    rows[1]["image"] = [rows[1]["image"], rows[0]["image"]]
    rows[1]["conversations"][0]["value"] = "<image>\n" + rows[1]["conversations"][0]["value"]
    for row in rows[3:]:
        del row["image"]
        row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
    path = tmp_path_factory.mktemp("kernels") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def trainer_of(rows_file: Path, synthetic_data: Path, tmp_path: Path) -> Callable[[Path], Any]:
    """`trainer_of(model)`: the SFT stage's Trainer for packs, in evaluation mode."""
    from drive_vlm.stages.engine.stage import StageFlags
    from drive_vlm.stages.sft import prepare

    def make(model: Path) -> Any:
        extra = {"output_dir": str(tmp_path), "report_to": [], "disable_tqdm": True, "use_cpu": True}
        data = DataConfig(data=[str(rows_file)], image_root=str(synthetic_data), packing=True, max_length=800)
        configs = (ModelConfig(model=str(model)), data, RunConfig())
        trainer = prepare(StageFlags("sft", configs, extra))[0]
        trainer.model.eval()
        return trainer

    return make


def batch_of(trainer: Any, *packs: tuple[int, ...]) -> dict[str, Any]:
    batch = trainer.data_collator([trainer.train_dataset[pack] for pack in packs])
    return {name: value for name, value in batch.items() if name not in ("sample_ids", "bad_rows", "num_tokens")}


@torch.no_grad()
def log_probs(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    return trainer.model(**batch, token_log_probs=True).log_probs


def rows_apart(trainer: Any, rows: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([log_probs(trainer, batch_of(trainer, (row,))) for row in rows])


def use(model: Any, kernel: str) -> None:
    """All attention of `model` by `kernel`; from_pretrained would refuse it without a GPU."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = kernel


class FlashOnHost:
    """flash_attn's two functions in plain torch, float[..., T, heads, D]; `varlen` notes what it is given."""

    def __init__(self) -> None:
        self.causal: list[tuple[torch.Tensor, Any]] = []

    def dense(
        self, q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False
    ) -> torch.Tensor:
        groups = q.shape[-2] // k.shape[-2]
        q, k, v = (x.transpose(-3, -2) for x in (q, k.repeat_interleave(groups, -2), v.repeat_interleave(groups, -2)))
        scores = q @ k.transpose(-1, -2) * (softmax_scale or q.shape[-1] ** -0.5)
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(-3, -2)

    def varlen(
        self, q: Any, k: Any, v: Any, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None, max_seqlen_q: Any = None,
        max_seqlen_k: Any = None, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q.dtype == torch.int32
        assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
        if causal:
            self.causal.append((cu_seqlens_q, max_seqlen_q))
        sizes = cu_seqlens_q.diff().tolist()
        parts = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
        return torch.cat([self.dense(*part, softmax_scale=softmax_scale, causal=causal) for part in parts])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FlashOnHost:
    """The reference in the kernel's place; transformers' look at positions in every layer is refused."""
    made = FlashOnHost()
    names = (flash_utils._pad_input, flash_utils._unpad_input)
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *_, **__: (made.dense, made.varlen, None, *names))
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_process_flash_kwargs_fn"):
        monkeypatch.setattr(flash_utils, name, None)

    def refuse(*_: Any) -> None:
        raise AssertionError("a layer works out where rows end")

    monkeypatch.setattr(flash_utils, "prepare_fa_kwargs_from_position_ids", refuse)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_sdpa_takes_each_row_by_itself(
    family: str, tiny_families: Callable[[str], Path], trainer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against rows alone, and against the dense mask that transformers makes of the same pack; no layer is given a mask."""
    calls: list[list[int]] = []
    own = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Any, key: Any, value: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("is_causal"):
            assert attn_mask is None
            calls.append(query.shape[2])
        return own(query, key, value, attn_mask=attn_mask, **kwargs)

    trainer = trainer_of(tiny_families(family))
    rows = (3, 0, 1, 4, 2)
    batch = batch_of(trainer, rows[:2], rows[2:])
    lengths = [len(trainer.train_dataset[(row,)][0]["input_ids"]) for row in rows]
    padding = batch["input_ids"].shape[1] - sum(lengths)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        found = log_probs(trainer, batch)
    layers = trainer.model.config.get_text_config().num_hidden_layers
    # A single token is given without a word on what is causal.
    assert calls == [*lengths, *([padding] if padding > 1 else [])] * layers
    dense = {name: value for name, value in batch.items() if name not in ROW_ENDS}
    use(trainer.model, "sdpa")
    torch.testing.assert_close(found, log_probs(trainer, dense), atol=2e-5, rtol=2e-5)
    trainer.data_collator.flatten = False
    torch.testing.assert_close(found, rows_apart(trainer, rows), atol=2e-5, rtol=2e-5)


def test_rows_longer_than_a_sliding_window_see_the_window(tiny_model: Path) -> None:
    """Against a mask written out: a row of 9 tokens and one of 3, windows of 4."""
    from drive_vlm.models.row_attention import attention

    module, ends = torch.nn.Module(), torch.tensor([0, 9, 12], dtype=torch.int32)
    module.is_causal, module.num_key_value_groups = True, 1
    query, key, value = torch.randn(3, 1, 2, 12, 8, generator=torch.Generator().manual_seed(0))
    place = torch.arange(12)
    row = place >= 9
    seen = (row[:, None] == row) & (place[:, None] >= place) & (place[:, None] - place < 4)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)
    found = attention(module, query, key, value, None, cu_seq_lens_q=ends, sliding_window=4)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_layer_without_the_ends_is_refused(
    tiny_model: Path, trainer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that see each other would only be a worse loss."""
    trainer = trainer_of(tiny_model)
    layer = trainer.model.model.language_model.layers[0].self_attn
    own = layer.forward

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **{name: value for name, value in kwargs.items() if name != "cu_seq_lens_q"})

    monkeypatch.setattr(layer, "forward", forgetful)
    with pytest.raises(RuntimeError, match="packed rows reached this layer without their ends"):
        log_probs(trainer, batch_of(trainer, (3, 0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_is_given_where_rows_end(
    family: str, tiny_families: Callable[[str], Path], trainer_of: Any, kernel: FlashOnHost
) -> None:
    trainer = trainer_of(tiny_families(family))
    rows = (3, 0, 1, 4, 2)
    expected = rows_apart(trainer, rows)
    trainer.data_collator.flatten = True
    batch = batch_of(trainer, rows[:2], rows[2:])
    use(trainer.model, "flash_attention_2")
    torch.testing.assert_close(log_probs(trainer, batch), expected, atol=2e-5, rtol=2e-5)

    lengths = [len(trainer.train_dataset[(row,)][0]["input_ids"]) for row in rows]
    padding = batch["input_ids"].shape[1] - sum(lengths)
    ends = np.cumsum([0, *lengths, *([padding] if padding else [])]).tolist()
    assert len(kernel.causal) == trainer.model.config.get_text_config().num_hidden_layers
    for where, longest in kernel.causal:
        assert where.tolist() == ends and longest == max(*lengths, padding) and type(longest) is int


def test_wrong_ends_would_be_seen(tiny_model: Path, trainer_of: Any, kernel: FlashOnHost) -> None:
    """The negative control: rows that see each other have other log-probabilities."""
    trainer = trainer_of(tiny_model)
    rows = (3, 0, 1)
    expected = rows_apart(trainer, rows)
    trainer.data_collator.flatten = True
    batch = batch_of(trainer, rows)
    batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = batch["cu_seq_lens_q"][[0, 2, -1]]
    batch["max_length_q"] = batch["max_length_k"] = int(batch["cu_seq_lens_q"].diff().max())
    use(trainer.model, "flash_attention_2")
    assert (log_probs(trainer, batch) - expected).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_flex_is_given_a_block_mask(
    family: str, tiny_families: Callable[[str], Path], trainer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention.flex_attention import BlockMask, create_mask

    masks: list[Any] = []

    def on_host(
        q: Any, k: Any, v: Any, block_mask: Any = None, scale: Any = None, enable_gqa: bool = False, **_: Any
    ) -> torch.Tensor:
        masks.append(block_mask)
        seen = block_mask and create_mask(block_mask.mask_mod, len(q), 1, q.shape[2], k.shape[2], q.device.type)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)

    # The kernel in plain torch: transformers compiles its own, which takes a minute of a CPU.
    monkeypatch.setattr(flex.WrappedFlexAttention, "__call__", lambda self: on_host)
    trainer = trainer_of(tiny_families(family))
    rows = (3, 0, 1, 4, 2)
    expected = rows_apart(trainer, rows)
    use(trainer.model, "flex_attention")
    found = log_probs(trainer, batch_of(trainer, rows[:2], rows[2:]))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert (
        sum(isinstance(mask, BlockMask) for mask in masks) >= trainer.model.config.get_text_config().num_hidden_layers
    )


@pytest.mark.slow
@pytest.mark.parametrize(("width", "again"), [(None, False), (8, True)])
def test_flex_is_compiled_for_one_width(
    width: int | None, again: bool, tiny_model: Path, trainer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs of any filling have one width; with the width that other kernels take, each new one is compiled for (the control)."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention, backend=counter)
    monkeypatch.setattr(flex.WrappedFlexAttention, "__call__", lambda self: compiled)
    trainer = trainer_of(tiny_model)
    flags = trainer.parts.flags
    model, data = (
        dataclasses.replace(flags.model, attn_implementation="flex"),
        dataclasses.replace(flags.data, max_length=128),
    )
    trainer.parts.flags = dataclasses.replace(flags, configs=(model, data, flags.run))
    trainer.data_collator = trainer.parts.collator
    if width is not None:
        trainer.data_collator.pad_to_multiple_of = width
    use(trainer.model.model.language_model, "flex_attention")
    counts = []
    for pack in ((3,), (4, 3), (3, 4, 3)):
        batch = batch_of(trainer, pack)
        assert batch["input_ids"].shape[1] == 128 or width is not None
        log_probs(trainer, batch)
        counts.append(counter.frame_count)
    assert (counts[-1] > counts[0]) == again, counts
