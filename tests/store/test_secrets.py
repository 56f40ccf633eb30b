import pickle
from types import SimpleNamespace

import pytest

from drive_vlm.store.secrets import HIDDEN, hide, hide_words, is_secret, without_secrets


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "PATH", "PYTHONPATH", "NCCL_DEBUG", "OMP_NUM_THREADS", "KEYBOARD"]
)
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_a_secret_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "open-sesame")
    monkeypatch.setenv("SHORT_KEY", "1")
    value = {
        "url": "https://user:pass@host/v1?key=open-sesame", "api_key": "abc", "hub_token": None, "pad_token": "<pad>",
        "list": ["hf_abcdefghijklmnopqrstuv", 1, True], "sk": "sk-abcdefghijklmnopqrstuv is it",
    }  # fmt: skip
    assert hide(value) == {
        "url": f"https://{HIDDEN}@host/v1?key={HIDDEN}", "api_key": HIDDEN, "hub_token": None, "pad_token": "<pad>",
        "list": [HIDDEN, 1, True], "sk": f"{HIDDEN} is it",
    }  # fmt: skip


def test_what_is_written_holds_no_secret_and_the_run_keeps_it() -> None:
    """training_args.bin is a pickle of the Trainer's arguments."""
    settings = SimpleNamespace(
        hub_token="hf-secret-of-mine", output_dir="runs/x", deepspeed={"comet": {"api_key": "k"}}
    )
    with without_secrets(settings):
        written = pickle.dumps(vars(settings))
    assert b"hf-secret-of-mine" not in written and b"runs/x" in written
    assert settings.hub_token == "hf-secret-of-mine" and settings.deepspeed == {"comet": {"api_key": "k"}}


def test_flags_with_secrets() -> None:
    words = ["sft", "--hub_token", "abcdef", "--api-key=xyz", "--max_length", "64", "--hub_token", "--bf16"]
    assert hide_words(words) == [
        "sft",
        "--hub_token",
        HIDDEN,
        f"--api-key={HIDDEN}",
        "--max_length",
        "64",
        "--hub_token",
        "--bf16",
    ]
