"""A plain language model as a family: text rows in, answers out; pictures are refused with a word."""

import pytest

from drive_vlm.config import DataConfig, ModelConfig
from drive_vlm.data.samples import BadRow
from drive_vlm.generate import LocalModel
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import JudgeConfig, Request
from drive_vlm.models import load_family
from drive_vlm.models.tiny.tiny import CHAT_TEMPLATE, train_tokenizer


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["the car stops at the red light"] * 3, 400)
    tokenizer.chat_template = CHAT_TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    path = tmp_path_factory.mktemp("language")
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_family_of_a_llama(language_model):
    import torch

    family = load_family(ModelConfig(model=str(language_model)), torch.float32)
    assert family.vision is None and family.tokenizer.pad_token_id is not None
    names = [name for name, _ in family.model.named_parameters()]
    assert all(name.startswith(family.parts["language_model"]) for name in names)


def test_a_text_judge_answers_every_request_and_refuses_pictures(language_model, tmp_path):
    judge = open_judge(JudgeConfig(judge_model=str(language_model), judge_backend="hf", judge_max_tokens=3))
    requests = [Request((("system", "judge"), ("user", "the car " * n))) for n in (3, 1, 2)]
    replies = judge.ask(requests, attempt=0)
    assert len(replies) == 3 and judge.ask(requests[1:2], attempt=0) == replies[1:2]
    assert judge.spent() == {"requests": 4, "cost": None}
    with pytest.raises(BadRow, match="plain language model"):
        judge.ask([Request((("user", "see"),), (str(tmp_path / "a.png"),))], attempt=0)


def test_without_a_chat_template_it_is_refused(language_model, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(language_model, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        LocalModel(ModelConfig(model=str(bare)), DataConfig(data=[]))


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        open_judge(JudgeConfig(judge_model=str(tmp_path), judge_backend="hf"))
