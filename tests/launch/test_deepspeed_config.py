import json
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_a_secret_that_every_checkpoint_would_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "comet": {"enabled": True, "api_key": "mine"}}))
    with pytest.raises(ValueError, match=r"mine\.json: holds a secret.*COMET_API_KEY"):
        load_deepspeed_config(str(path), cpu=True)


@pytest.mark.parametrize("key", OWNED)
def test_a_literal_that_the_command_line_owns_is_refused(tmp_path: Path, key: str) -> None:
    config: dict = {"zero_optimization": {"stage": 2}}
    section, _, leaf = key.rpartition(".")
    literal = {"type": "AdamW"} if leaf in ("optimizer", "scheduler") else True if leaf == "enabled" else 1
    (config.setdefault(section, {}) if section else config)[leaf] = literal
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"mine\.json.*belongs to the command line.*--") as error:
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


ZERO2 = {"stage": 2}
ZERO3 = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}


def refuse(folder: Path, config: object) -> str:
    """The message that a configuration is refused with."""
    path = folder / "mine.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config, indent=2))
    with pytest.raises(ValueError) as error:
        load_deepspeed_config(str(path), cpu=False)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    return str(error.value).removeprefix(str(folder))


WRONG = {
    # name: (configuration, pattern of the message: line, key, reason, way out)
    "typo at the top": ({"zero_optimisation": ZERO2, "zero_optimization": ZERO2}, r'2: "zero_optimisation" is not a key .*at the top level\. Did you mean zero_optimization\?'),
    "typo inside": ({"zero_optimization": {"stage": 2, "overlap_com": True}}, r'4: "zero_optimization\.overlap_com" is not a key .* in "zero_optimization"\. Did you mean overlap_comm\?'),
    "typo two levels down": ({"zero_optimization": ZERO3 | {"offload_param": {"device": "cpu", "pin_memry": True}}}, r"pin_memry.* Did you mean pin_memory\?"),
    "key in the wrong section": ({"zero_optimization": ZERO2, "overlap_comm": True}, r'"overlap_comm" is not a key .* It belongs into "zero_optimization"'),
    "removed": ({"zero_optimization": ZERO2, "amp": {"enabled": True}}, r'"amp" was removed from DeepSpeed'),
    "old name": ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, r"cpu_offload.* old name\. Write offload_optimizer"),
    "changes the batch": ({"zero_optimization": ZERO2, "tensor_parallel": {"autotp_size": 2}}, r"tensor_parallel.* not taken: every process .* global batch"),
    "no zero section": ({"bf16": {"enabled": "auto"}}, r'"zero_optimization" is missing'),
    "zero as a switch": ({"zero_optimization": True}, r'"zero_optimization" is true, not a section'),
    "no stage": ({"zero_optimization": {}}, r"stage\" is missing\. Write 0, 1, 2 or 3"),
    "stage 4": ({"zero_optimization": {"stage": 4}}, r"3: .*stage\" is 4\. Write 0, 1, 2 or 3"),
    "stage as text": ({"zero_optimization": {"stage": "auto"}}, r'stage" is "auto"\. Write 0'),
    "wrong kind": ({"zero_optimization": {"stage": 2, "overlap_comm": "yes"}}, r'overlap_comm" is "yes"\. Write true or false'),
    "negative size": ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, r"reduce_bucket_size\" is -1\. Write a whole number"),
    "odd bucket": ({"zero_optimization": {"stage": 2, "allgather_bucket_size": 99}}, r"99, an odd number"),
    "offloaded parameters in stage 2": ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, r'offload_param" acts under stage 3 only, and the stage is 2\. Set "stage" to 3, or remove'),
    "offloaded optimizer in stage 0": ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, r"offload_optimizer\" needs ZeRO, and the stage is 0"),
    "stage 3 key in stage 2": ({"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1e9}}, r"stage3_max_live_parameters\" acts under stage 3 only"),
    "ZeRO++ in stage 2": ({"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}}, r"zero_quantized_gradients\" acts under stage 3 only"),
    "both precisions": ({"zero_optimization": ZERO2, "bf16": {"enabled": True}, "fp16": {"enabled": True}}, r"bf16\.enabled\" and fp16\.enabled are both true\. .*--bf16 or --fp16"),
    "bf16 states without weights": ({"zero_optimization": ZERO2, "bf16": {"bf16_optimizer_states": True}}, r"bf16_optimizer_states\" needs bf16 master weights"),
    "no model at the end": ({"zero_optimization": {"stage": 3}}, r"stage3_gather_16bit_weights_on_model_save\" is missing\. Set it to true"),
    "no model, said so": ({"zero_optimization": ZERO3 | {"stage3_gather_16bit_weights_on_model_save": False}}, r"model_save\" is false\. Set it to true"),
    "NVMe nowhere": ({"zero_optimization": ZERO3 | {"offload_param": {"device": "nvme"}}}, r"nvme_path\" is missing .* Give a folder"),
    "NVMe in stage 2": ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}, r"silently turn into \"cpu\""),
    "unknown device": ({"zero_optimization": ZERO3 | {"offload_param": {"device": "gpu"}}}, r'device" is "gpu"\. Write "cpu", "nvme" or "none"'),
    "part of the optimizer in stage 2": ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, r"ratio\" needs stage 3"),
    "auto that nobody fills": ({"zero_optimization": {"stage": 2, "allgather_bucket_size": "auto"}}, r'allgather_bucket_size" is "auto", which is not filled in for this key\. Write a value, or remove'),
    "auto of another section": ({"zero_optimization": ZERO2, "data_types": {"keep_in_fp32_modules": "auto"}}, r"is not filled in for this key"),
    "stage 3 auto in stage 2": ({"zero_optimization": {"stage": 2, "stage3_prefetch_bucket_size": "auto"}}, r"acts under stage 3 only"),
    "a key twice": ('{"zero_optimization": {"stage": 2, "overlap_comm": true,\n "stage": 3}}', r'"stage" stands twice in one section \(next to overlap_comm\)'),
    "line comment": ('{\n "zero_optimization": {"stage": 2} // two\n}', r"mine\.json:2: not valid JSON .*Comments are not JSON"),
    "hash comment": ('{\n # mine\n "zero_optimization": {"stage": 2}\n}', r"mine\.json:2: not valid JSON .*Comments are not JSON"),
    "comma too many": ('{\n "zero_optimization": {"stage": 2},\n}', r"mine\.json:3: not valid JSON .*Remove the comma before it"),
    "not a number": ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": NaN}}', r"NaN is not a JSON value"),
    "a list": ("[1]", r"expected an object \{\.\.\.\}, got list"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_with_file_key_and_way_out(tmp_path: Path, case: str) -> None:
    config, pattern = WRONG[case]
    message = refuse(tmp_path, config)
    assert re.search(pattern, message), message


def test_bytes_that_are_no_text_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError, match=r"mine\.json: not UTF-8"):
        load_deepspeed_config(str(path), cpu=False)


RIGHT = [
    {"stage": 0},
    {"stage": 1, "reduce_bucket_size": "auto", "stage3_gather_16bit_weights_on_model_save": False},
    {"stage": 2, "offload_param": {"device": "none"}, "zero_hpz_partition_size": 1, "zero_quantized_weights": False},
    ZERO3 | {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto", "offload_param": None},
    {"stage": 3, "gather_16bit_weights_on_model_save": True, "max_live_parameters": 1e9},
    ZERO3 | {"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme", "ratio": 0.5}},
]  # fmt: skip


@pytest.mark.parametrize("zero", RIGHT, ids=str)
def test_what_deepspeed_and_transformers_take_is_taken(tmp_path: Path, zero: dict) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"zero_optimization": zero, "wall_clock_breakdown": True, "aio": {"block_size": 1048576}})
    )
    assert zero_stage(load_deepspeed_config(str(path), cpu=False)) == zero["stage"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_configurations_are_read_by_the_installed_deepspeed(path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    values = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
    }
    config = DeepSpeedConfig(load_deepspeed_config(path.stem, cpu=False) | values)
    assert config.zero_config.stage == int(path.stem[4])
    assert (config.zero_config.offload_param is not None) == (path.stem == "zero3_offload")
    assert config.zero_config.gather_16bit_weights_on_model_save == (config.zero_config.stage == 3)


@pytest.mark.fresh("its imports are timed")
def test_the_command_line_tells_at_once_in_one_line(tmp_path: Path, run: Callable) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"zero_optimization": {"stage": 2, "offload_parm": {"device": "cpu"}}}')
    words = [
        sys.executable,
        "-m",
        "drive_vlm",
        "sft",
        "--model",
        "m",
        "--data",
        "d.jsonl",
        "--learning_rate",
        "1e-5",
        "--deepspeed",
        path,
    ]
    started = time.perf_counter()
    done = run(words)
    assert done.returncode == 2 and time.perf_counter() - started < 3, "nothing heavy is imported before"
    assert done.stderr.count("\n") == 1 and "Did you mean offload_param?" in done.stderr, done.stderr


def test_mutated_files_are_refused_by_name_or_taken(tmp_path: Path) -> None:
    """400 files with a few values changed, keys lost, texts cut off; and what no JSON reader likes. Nothing but ValueErrors."""
    rng, path = random.Random(0), tmp_path / "ds.json"
    values = [None, True, 0, -1, 3, 0.5, 1e308, 10**30, "", "auto", "nvme", [], [1], {}, {"a": 1}, {"device": []}]

    def places(part: Any, way: tuple = ()) -> list[tuple]:
        inner = (
            [place for key, one in part.items() for place in places(one, (*way, key))] if isinstance(part, dict) else []
        )
        return [way, *inner] if way else inner

    def refused(content: bytes) -> str:
        path.write_bytes(content)
        try:
            load_deepspeed_config(str(path), cpu=rng.random() < 0.5)
        except ValueError as error:
            return str(error)
        return ""

    told = 0
    for _ in range(400):
        config = json.loads(rng.choice(sorted(CONFIGS.glob("*.json"))).read_text())
        for _ in range(rng.randint(1, 3)):
            *way, last = rng.choice(places(config))
            section = config
            for key in way:
                section = section[key]
            if rng.random() < 0.2:
                del section[last]
            else:
                section[last] = json.loads(json.dumps(rng.choice(values)))
            config = config or {"zero_optimization": {"stage": 1}}
        text = json.dumps(config)
        words = refused(text[: rng.randint(0, len(text))].encode() if rng.random() < 0.1 else text.encode())
        told += bool(words)
        assert not words or (str(path) in words and "\n" not in words), words
    assert 100 < told < 400
    for content in (
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"",
        b"null",
        b'{"zero_optimization": ' + b"9" * 5000 + b"}",
    ):
        assert str(path) in refused(content)
    assert '"zero_optimization.sub_group_size" is Infinity' in refused(
        b'{"zero_optimization": {"stage": 3, "sub_group_size": 1e999}}'
    )
