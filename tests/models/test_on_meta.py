"""The real classes without weights: what training freezes, adapts and counts, from a config.json alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import drive_vlm.models
from drive_vlm.config import ModelConfig
from drive_vlm.models import MODELS, family_spec, load_family, model_on_meta
from drive_vlm.models.flops import train_flops
from drive_vlm.models.freezing import freeze
from drive_vlm.models.lora import apply_lora

KINDS = [kind for kind in MODELS if family_spec(kind).adapter]
ARCHITECTURES = Path(drive_vlm.models.__file__).parent / "architectures"
QWEN = ["qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_2b", "qwen3_vl_4b", "qwen3_vl_8b"]
NATIVE = [
    "internvl3_1b",
    "llava_next_8b",
    "smolvlm",
    "siglip2_qwen3_4b",
    "minicpm_v_8b",
    "minicpm_v_2_6",
    "cogvlm2_19b",
    *QWEN,
]


@pytest.fixture
def tiny_of(tiny_model: Path, tiny_video_model: Path, tiny_families: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda kind: {"internvl": tiny_model, "siglip_qwen": tiny_video_model}.get(kind) or tiny_families(kind)


def weights_of(model: Any) -> list[tuple[str, torch.Size, bool]]:
    return [(name, weight.shape, weight.requires_grad) for name, weight in model.named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 8])
def test_it_is_the_loaded_model_without_its_bytes(
    kind: str, rank: int, tiny_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Freezing, LoRA and FLOPs give the same; from a directory without weights too."""
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_of(kind) / "config.json", bare)
    config = ModelConfig(model=str(tiny_of(kind)), lora_rank=rank)
    loaded = load_family(config, torch.float32)
    outlines = [model_on_meta(config), model_on_meta(ModelConfig(model=str(bare), lora_rank=rank))]
    for family in (loaded, *outlines):
        freeze(family.model, family.parts, ["vision_tower"])
        if rank:
            family.model = apply_lora(family, config, ["vision_tower"])
    for family in outlines:
        assert all(weight.is_meta for weight in family.model.parameters())
        assert weights_of(family.model) == weights_of(loaded.model)
        assert train_flops(family) == train_flops(loaded)


def test_a_head_of_its_own_is_seen_in_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    """A config that says tied does not count where the checkpoint stores a head, as load_family has it."""
    path = tmp_path / "tied"
    shutil.copytree(tiny_model, path)
    config = json.loads((path / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (path / "config.json").write_text(json.dumps(config))
    names = [name for name, _, _ in weights_of(model_on_meta(ModelConfig(model=str(path))).model)]
    assert names == [name for name, _, _ in weights_of(load_family(ModelConfig(model=str(path)), torch.float32).model)]
    assert "lm_head.weight" in names


@pytest.mark.parametrize("name", NATIVE)
def test_shipped_configs_build(name: str) -> None:
    config = json.loads((ARCHITECTURES / f"{name}.json").read_text())["config"]
    family = model_on_meta(ModelConfig(model=name), config)
    assert all(family.model.get_submodule(path) is not None for paths in family.parts.values() for path in paths)
    flops = train_flops(family)
    assert flops.tile > 0 and flops.token > 0
    assert bool(config["tie_word_embeddings"]) == (
        family.model.lm_head.weight is family.model.get_input_embeddings().weight
    )


@pytest.mark.fresh("it looks at what is imported")
def test_families_and_tilings_are_read_without_torch() -> None:
    code = (
        "import json, sys\nfrom pathlib import Path\nimport drive_vlm.models as m\n"
        "for kind in m.MODELS: assert m.family_spec(kind).parts['language_model']\n"
        f"for name in {NATIVE}:\n"
        f"    stored = json.loads((Path({str(ARCHITECTURES)!r}) / f'{{name}}.json').read_text())\n"
        "    spec = m.family_spec(stored['config']['model_type'])\n"
        "    tokens = spec.tile_tokens(stored['config'])[1]\n"
        "    tiling = spec.tiling.read({'image_seq_length': tokens, **stored['processor']})\n"
        "    print([tiling.layout(h, w) for h, w in ((336, 336), (720, 1280))], tiling.tokens(tiling.largest()))\n"
        "assert not {'torch', 'transformers'} & {name.split('.')[0] for name in sys.modules}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [
        "[1, 9] 3330",
        "[(3, 1176), (5, 1948)] 2928",
        "[(17, 4, 4), (13, 3, 4)] 1416",
        "[1, 1] 83",
        # 336 x 336 stays whole; ten slices of 98 tokens with the tags around all and two newlines, and without the tags.
        "[(1, 0, 0), (7, 2, 3)] 984",
        "[(1, 0, 0), (7, 2, 3)] 662",
        "[1, 1] 2306",
        # 14 pixels a patch: 336 x 336 is 12 x 12 tokens, 720 x 1280 becomes 728 x 1288, 26 x 46.
        *["[(144, 1, 24, 24, -1), (1196, 1, 52, 92, -1)] 16384"] * 2,
        # 16 pixels a patch: 336 becomes 320 (10.5 tiles are rounded to the even 10), 720 becomes 704 (22.5 to 22).
        *["[(100, 1, 20, 20, -1), (880, 1, 44, 80, -1)] 16384"] * 3,
    ]


def test_a_family_from_outside_is_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVE_VLM_MODELS", "qwen9 = drive_vlm.models.language:FAMILY")
    with pytest.raises(ModuleNotFoundError):
        monkeypatch.setenv("DRIVE_VLM_MODELS", "qwen9=no_such_module:FAMILY")
        family_spec("qwen9")
    monkeypatch.setenv("DRIVE_VLM_MODELS", "qwen9=drive_vlm.models.language:FAMILY")
    assert family_spec("qwen9").name == "language"
    monkeypatch.setenv("DRIVE_VLM_MODELS", "qwen9")
    with pytest.raises(ValueError, match=r"DRIVE_VLM_MODELS: 'qwen9' is not \"model_type=module:spec\""):
        family_spec("qwen9")
