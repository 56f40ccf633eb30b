import pytest

from drive_vlm.store.secrets import HIDDEN, hide, hide_words, is_secret


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
