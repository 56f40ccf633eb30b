"""Against what the published code of MiniCPM-Llama3-V-2_5 gave for the same weights, one slice at a time, in float32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drive_vlm.models.minicpmv.resampler import sine_table
from drive_vlm.models.minicpmv.tower import position_ids

Recorded = Callable[[str], dict[str, torch.Tensor]]


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=1e-5)


def slices(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [inputs[f"pixel_values.{i}"] for i in range(4)]


def padded(inputs: dict[str, torch.Tensor], fill: float = 0.0) -> dict[str, torch.Tensor]:
    """The four slices in one batch; what stands in the padding must not matter."""
    pixels = slices(inputs)
    longest = max(one.shape[-1] for one in pixels)
    joined = [torch.nn.functional.pad(one, (0, longest - one.shape[-1]), value=fill) for one in pixels]
    return {"pixel_values": torch.stack(joined), "tgt_sizes": inputs["tgt_sizes"].long()}


@pytest.fixture
def inputs(recorded: Recorded) -> dict[str, torch.Tensor]:
    return recorded("inputs")


@pytest.fixture
def outputs(recorded: Recorded) -> dict[str, torch.Tensor]:
    return recorded("outputs")


def test_tower_and_resampler(golden_model: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Alone and in a batch, whatever the padding holds: positions, features of the tower, tokens of the resampler."""
    body, sizes = golden_model.model, inputs["tgt_sizes"].tolist()
    with torch.no_grad():
        together = body.get_image_features(**padded(inputs, fill=7.0), return_dict=True)
    for i, (rows, columns) in enumerate(sizes):
        count = rows * columns
        theirs = outputs[f"alone.vpm_last_hidden_state.{i}"]
        assert torch.equal(position_ids([(rows, columns)], count, 10, False)[0], outputs[f"alone.vpm_position_ids.{i}"])
        with torch.no_grad():
            alone = body.get_image_features(slices(inputs)[i][None], inputs["tgt_sizes"][i : i + 1], return_dict=True)
        for found, place in ((alone, 0), (together, i)):
            close(found.last_hidden_state[place, :count], theirs)
            close(found.pooler_output[place], outputs["alone.resampler_output"][i])


def test_logits_loss_and_gradients(
    golden_model: Any, golden: Path, inputs: dict[str, Any], outputs: dict[str, Any], published_names: Callable
) -> None:
    """Logits of every token that is not padding, the loss, and the norm of every gradient under its published name."""
    names = ("input_ids", "position_ids", "attention_mask", "labels")
    batch = {name: inputs[name].long() for name in names} | padded(inputs)
    found = golden_model(**batch)
    real = batch["attention_mask"].bool()
    close(found.logits[real], outputs["alone.logits"][real])
    expected = json.loads((golden / "outputs.json").read_text())["alone"]
    assert found.loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    found.loss.backward()
    norms = {name: weight.grad.norm().item() for name, weight in golden_model.named_parameters()}
    published = {ours: theirs for theirs, ours in published_names(golden_model).items()}
    assert sorted(published[name] for name in norms) == sorted(expected["grad_norms"])
    for name, norm in norms.items():
        # The gradient of a key's bias is zero but for rounding.
        assert norm == pytest.approx(expected["grad_norms"][published[name]], rel=1e-5, abs=1e-7), name


def test_text_alone(golden_model: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    with torch.no_grad():
        found = golden_model(input_ids=inputs["input_ids"][:1, -12:]).logits
    close(found, outputs["text_only_logits"])


def test_tables(recorded: Recorded, outputs: dict[str, torch.Tensor]) -> None:
    """The resampler's sines of a grid of 5 x 7, and the tower's positions of every length up to 1,200 patches."""
    rows, columns = torch.arange(35) // 7, torch.arange(35) % 7
    table = sine_table(7, 128, torch.device("cpu"))
    close(torch.cat([table[columns], table[rows]], 1).reshape(5, 7, 256), outputs["pos_embed_5x7"], 1e-6)
    ids = torch.cat([position_ids([(1, n)], n, 70, False)[0] for n in range(1, 1201)])
    assert torch.equal(ids, recorded("preprocess")["position_ids_1xN_flat"].long())


def test_saved_under_the_published_names(golden_model: Any, golden: Path, tmp_path: Path) -> None:
    """Byte for byte, with a config.json in the published layout, which loads to the same model again."""
    golden_model.save_pretrained(tmp_path)
    theirs, ours = load_file(golden / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    stored, published = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, golden))
    odd = {"torch_dtype", "transformers_version"}
    assert {
        name: stored.get(name) for name in published if name not in odd and stored.get(name) != published[name]
    } == {
        # It is told apart by more numbers here, none of which are other ones.
        "vision_config": stored["vision_config"],
    }
    assert published["vision_config"].items() <= stored["vision_config"].items()
    again = type(golden_model).from_pretrained(tmp_path)
    assert again.config.text_config.to_dict() == golden_model.config.text_config.to_dict()
