import json
from pathlib import Path

import pytest

from drive_vlm.launch.deepspeed import CONFIGS, OWNED, load_deepspeed_config, zero_stage


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_configurations_hold_memory_layout_only(path: Path) -> None:
    config = load_deepspeed_config(path.stem, cpu=False)
    assert f"zero{zero_stage(config)}" == path.stem.split("_")[0]
    assert config["bf16"]["enabled"] == config["gradient_clipping"] == config["train_batch_size"] == "auto"
    assert "optimizer" not in config and "scheduler" not in config
    assert ("offload_optimizer" in config["zero_optimization"]) == path.stem.endswith("offload")


def test_on_a_cpu_nothing_is_compiled_or_overlapped() -> None:
    config = load_deepspeed_config("zero2", cpu=True)
    assert config["zero_force_ds_cpu_optimizer"] is False and config["zero_optimization"]["overlap_comm"] is False


def test_an_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"--deepspeed zeero3: no such configuration. Known: .*zero2_offload.*Did you mean zero3\?"
    ):
        load_deepspeed_config("zeero3", cpu=True)


@pytest.mark.parametrize("key", OWNED)
def test_a_literal_that_the_command_line_owns_is_refused(tmp_path: Path, key: str) -> None:
    config: dict = {"zero_optimization": {"stage": 2}}
    section, _, leaf = key.rpartition(".")
    (config.setdefault(section, {}) if section else config)[leaf] = (
        {"type": "AdamW"} if leaf in ("optimizer", "scheduler") else 1
    )
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"mine\.json: .*belongs to the command line.*--") as error:
        load_deepspeed_config(str(path), cpu=True)
    assert f'"{key}"' in str(error.value) and OWNED[key] in str(error.value)


def test_auto_or_nothing_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"zero_optimization": {"stage": 1}, "gradient_clipping": "auto"}')
    config = load_deepspeed_config(str(path), cpu=False)
    assert config["train_micro_batch_size_per_gpu"] == "auto" and zero_stage(config) == 1
    assert zero_stage(None) == 0


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{\n"a": 1,,\n}')
    with pytest.raises(ValueError, match=r"mine\.json:2: not valid JSON"):
        load_deepspeed_config(str(path), cpu=False)
