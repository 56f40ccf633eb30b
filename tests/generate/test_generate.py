"""Generation: batches, ranks and restarts give the same predictions; servers get the same rows."""

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from drive_vlm.config import ModelConfig
from drive_vlm.data.predictions import finished_rows
from drive_vlm.generate import GenerateConfig, generate, keep_settings, take_shard


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(model, data, out, *more):
    words = ["--model", model, "--data", data / "test.jsonl", "--out", out, "--max_new_tokens", 4, "--limit", 12]
    return [sys.executable, "-m", "drive_vlm", "generate", *words, *more]


@pytest.mark.slow
@pytest.mark.supports("internvl generate", "internvl generate ddp")
def test_batches_ranks_and_restarts_give_the_same_predictions(run, tiny_model, synthetic_data, tmp_path, free_port):
    one = tmp_path / "one.jsonl"
    done = run(command(tiny_model, synthetic_data, one, "--batch_size", 5))
    assert done.returncode == 0, done.stderr
    rows = rows_of(one)
    source = rows_of(synthetic_data / "test.jsonl")[:12]
    assert [row["id"] for row in rows] == [row["id"] for row in source]
    assert [row["reference"] for row in rows] == [row["conversations"][1]["value"] for row in source]
    cut = [row for row in rows if row.get("finish_reason") == "length"]
    assert f"{len(cut)} of them end at --max_new_tokens 4 and are not whole" in done.stdout
    assert rows[0]["image"] == source[0]["image"] and rows[0]["template"] == source[0]["template"]

    torn = tmp_path / "torn.jsonl"
    lines = one.read_text().splitlines(keepends=True)
    marked = json.loads(lines[0]) | {"prediction": "kept"}
    torn.write_text(json.dumps(marked) + "\n" + lines[1][:20])
    ranks = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        2,
        "--master_port",
        free_port,
        "-m",
        "drive_vlm",
    ]
    done = run([*ranks, *command(tiny_model, synthetic_data, torn, "--batch_size", 3)[3:]])
    assert done.returncode == 0, done.stderr
    assert rows_of(torn) == [marked, *rows[1:]]
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.slow
def test_bad_rows_of_all_ranks_are_in_the_audit(run, tiny_model, synthetic_data, tmp_path, free_port):
    rows = rows_of(synthetic_data / "test.jsonl")[:4]
    for place, row in enumerate(rows[:3]):
        picture = (synthetic_data / row["image"]).read_bytes()
        row["image"] = f"{place}.png"
        (tmp_path / row["image"]).write_bytes(picture[: len(picture) // 2])
    shutil.copy(synthetic_data / rows[3]["image"], tmp_path / "3.png")
    rows[3]["image"] = "3.png"
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "p.jsonl"
    flags = ("--batch_size", 1, "--on_bad_row", "skip")
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port, "-m"]
    done = run([*ranks, "drive_vlm", *command(tiny_model, tmp_path, out, *flags)[3:]])
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows_of(out)] == [rows[3]["id"]]
    audit = json.loads((tmp_path / "p.bad_rows.json").read_text())
    assert sorted(row["where"].rsplit(":", 1)[1] for row in audit) == ["1", "2", "3"]


@pytest.mark.fresh("the command as a user starts it")
@pytest.mark.slow
def test_merge_of_a_lora_run_equals_the_adapter(run, tiny_model, synthetic_data, tmp_path):
    lora = tmp_path / "lora"
    train = [sys.executable, "-m", "drive_vlm", "sft", "--model", tiny_model, "--data", synthetic_data / "val.jsonl"]
    flags = [
        "--lora_rank",
        4,
        "--freeze",
        "vision_tower",
        "--max_steps",
        3,
        "--learning_rate",
        1e-2,
        "--output_dir",
        lora,
    ]
    assert (done := run([*train, *flags])).returncode == 0, done.stderr
    merged = tmp_path / "merged"
    done = run([sys.executable, "-m", "drive_vlm", "merge", "--checkpoint", lora, "--out", merged])
    assert done.returncode == 0, done.stderr
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family

    base, adapter, plain = (load_family(ModelConfig(model=str(p)), torch.float32) for p in (tiny_model, lora, merged))
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        reference, ours, untrained = (f.model.eval()(input_ids=ids).logits for f in (adapter, plain, base))
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
    assert (reference - untrained).abs().max() > 1e-3
    again = run([sys.executable, "-m", "drive_vlm", "merge", "--checkpoint", tmp_path, "--out", tmp_path / "x"])
    assert again.returncode == 2 and "neither adapter_config.json" in again.stderr


def test_rows_go_to_a_server_with_pictures_and_without_the_answer(run, synthetic_data, tmp_path):
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "stop"}}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [choice],
                "usage": usage,
            }
            answer = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            return None

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    out = tmp_path / "p.jsonl"
    url = f"http://127.0.0.1:{server.server_port}/v1"
    done = run(command("m", synthetic_data, out, "--backend", "openai", "--base-url", url))
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert len(asked) == 12 and [row["prediction"] for row in rows_of(out)] == ["stop"] * 12
    (message,) = asked[0]["messages"]
    assert message["role"] == "user" and {part["type"] for part in message["content"]} == {"image_url", "text"}


def test_an_empty_reply_is_an_empty_answer_and_is_paid_once(run, synthetic_data, tmp_path, chat_server):
    texts = iter(["", "", "", "", "", *["stop"] * 5])  # every attempt of the first request
    chat_server.answer = lambda body: next(texts)
    out = tmp_path / "p.jsonl"
    words = command("m", synthetic_data, out, "--backend", "openai", "--base_url", chat_server.url, "--workers", 1)
    for said in ("1 answers are empty, since", "6 answered before"):
        done = run([*words, "--limit", 6])
        assert done.returncode == 0 and said in done.stdout, done.stderr
    assert [row["prediction"] for row in rows_of(out)] == ["", *["stop"] * 5] and len(chat_server.requests) == 10


def test_cut_answers_and_refusals_of_a_server_are_kept_counted_and_shown(run, synthetic_data, tmp_path, chat_server):
    def body(**message):
        ending = message.pop("finish_reason", "stop")
        choice = {"index": 0, "message": {"role": "assistant", "content": None} | message, "finish_reason": ending}
        return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

    chat_server.faults = [
        body(content="The car brakes bec\ud83d", finish_reason="length"),
        body(refusal="I can't describe people."),
        body(finish_reason="length"),
        body(content=[{"type": "text", "text": "Go"}, {"type": "text", "text": " on"}]),
    ]
    out = tmp_path / "p.jsonl"
    words = command("m", synthetic_data, out, "--backend", "openai", "--base_url", chat_server.url, "--workers", 1)
    for _ in range(2):
        done = run([*words, "--limit", 4])
        assert done.returncode == 0, done.stderr
        assert "2 of them end at --max_new_tokens 4 and are not whole (finish_reason length)" in done.stdout
        assert len(chat_server.requests) == 4
    found = {row["prediction"]: row.get("finish_reason") for row in rows_of(out)}
    assert found == {"The car brakes bec\ufffd": "length", "": "length", "Go on": None}
    assert sorted(str(row.get("finish_reason")) for row in rows_of(out)) == ["None", "length", "length", "refused"]


def test_an_answer_of_a_model_that_reaches_the_limit_is_marked():
    from types import SimpleNamespace

    import numpy as np

    from drive_vlm.data.predictions import Answer
    from drive_vlm.sampling.local import LocalModel

    said = torch.tensor([[7, 5, 5, 5], [7, 5, 2, 0], [7, 5, 5, 3]])
    local = object.__new__(LocalModel)
    local.device, local.dtype, local.take_vision = torch.device("cpu"), torch.float32, lambda rows: {}
    local.family = SimpleNamespace(
        tokenizer=SimpleNamespace(pad_token_id=0, batch_decode=lambda ids, **_: [str(row.tolist()) for row in ids])
    )
    ends = SimpleNamespace(eos_token_id=[2, 3])
    local.network = SimpleNamespace(generate=lambda **_: said, generation_config=ends)
    rows = [{"input_ids": np.array([7]), "vision": {}}] * 3
    assert local._generate(rows, 3, {}) == [
        Answer("[5, 5, 5]", "length"), Answer("[5, 2, 0]"), Answer("[5, 5, 3]"),
    ]  # fmt: skip
    assert local._generate(rows, 4, {})[0] == Answer("[5, 5, 5]"), "shorter than the limit: it stopped by itself"


def test_answers_of_before_a_server_fails_are_kept(run, synthetic_data, tmp_path, chat_server):
    chat_server.answer = lambda body: "stop"
    chat_server.faults = [None] * 4 + [401]
    out = tmp_path / "p.jsonl"
    words = command("m", synthetic_data, out, "--backend", "openai", "--base_url", chat_server.url, "--workers", 1)
    assert run(words).returncode == 2
    assert len(finished_rows(out)) >= 4
    assert run(words).returncode == 0
    assert len(rows_of(out)) == 12 and len(chat_server.requests) == 13  # none but the failed one was asked twice


def test_rows_that_no_server_takes_are_left_out_on_request(run, synthetic_data, tmp_path, chat_server):
    chat_server.answer = lambda body: "stop"
    rows = rows_of(synthetic_data / "test.jsonl")
    rows = [rows[0], next(row for row in rows if row["image"] != rows[0]["image"])]
    for row, size in zip(rows, (300, None), strict=True):
        picture = (synthetic_data / row["image"]).read_bytes()
        row["image"] = f"{row['id']}.jpg"
        (tmp_path / row["image"]).write_bytes(picture[:size])
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "p.jsonl"
    words = command("m", tmp_path, out, "--backend", "openai", "--base_url", chat_server.url)
    assert run(words).returncode == 2 and not chat_server.requests
    assert run([*words, "--on_bad_row", "skip"]).returncode == 0
    assert [row["id"] for row in rows_of(out)] == [rows[1]["id"]]
    assert "test.jsonl:1" in (tmp_path / "p.bad_rows.json").read_text()


def test_a_torn_last_line_is_cut_and_a_foreign_line_is_refused(tmp_path):
    out = tmp_path / "p.jsonl"
    out.write_text('{"id": "a", "prediction": "x"}\n{"id": "b", "pre')
    assert set(finished_rows(out)) == {("", "a")}
    assert out.read_text().endswith("}\n")
    out.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"p\.jsonl:1: not a prediction row"):
        finished_rows(out)


def test_shards_joined_in_the_order_of_their_names_are_all_rows_in_order(tmp_path):
    rows = list(range(23))
    for count in (1, 5, 8, 23, 30):
        parts = [take_shard(rows, tmp_path / "p.jsonl", f"{i}/{count}") for i in range(count)]
        assert [path for _, path in parts] == sorted(path for _, path in parts)
        assert [row for part, _ in parts for row in part] == rows
        assert max(len(part) for part, _ in parts) - min(len(part) for part, _ in parts) <= 1
    assert take_shard(rows, tmp_path / "p.jsonl", "2/8")[1].name == "p.shard-02-of-08.jsonl"


@pytest.mark.parametrize("shard", ["8/8", "1", "-1/8", "0/0", "a/b", "1/2/3"])
def test_a_shard_that_does_not_exist_is_refused(tmp_path, shard):
    with pytest.raises(ValueError, match=r"from 0 to N-1"):
        take_shard([], tmp_path / "p.jsonl", shard)


@pytest.mark.slow
def test_shards_give_the_predictions_of_one_run(run, tiny_model, synthetic_data, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "p.jsonl"
    assert run(command(tiny_model, synthetic_data, whole)).returncode == 0
    for shard in ("1/2", "0/2"):
        done = run(command(tiny_model, synthetic_data, out, "--shard", shard))
        assert done.returncode == 0, done.stderr
    first, second = (tmp_path / f"p.shard-0{i}-of-02.jsonl" for i in range(2))
    assert first.read_text() + second.read_text() == whole.read_text() and not out.exists()
    again = run(command(tiny_model, synthetic_data, out, "--shard", "0/2"))
    assert "6 rows, 6 answered before, 0 to do" in again.stdout and again.returncode == 0


@pytest.mark.slow
def test_answers_of_two_models_do_not_mix(run, tiny_model, synthetic_data, tmp_path):
    out = tmp_path / "out.jsonl"
    first = run(command(tiny_model, synthetic_data, out, "--limit", 3))
    assert first.returncode == 0, first.stderr
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    again = run(command(moved, synthetic_data, out, "--limit", 5))
    assert again.returncode == 0 and "3 answered before" in again.stdout
    weights = load_file(moved / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    other = run(command(moved, synthetic_data, out, "--limit", 8))
    assert other.returncode == 2 and "other settings (model.weights: " in other.stderr
    warmer = run(command(tiny_model, synthetic_data, out, "--temperature", 0.7))
    assert (
        warmer.returncode == 2
        and "(temperature: 0.0 then, 0.7 now). Give another --out, or remove it and out.jsonl.settings.json"
        in warmer.stderr
    )
    assert len(rows_of(out)) == 5


def test_a_hub_model_is_the_same_after_its_download(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    out, config = tmp_path / "out.jsonl", GenerateConfig(data=[], out="x")
    keep_settings(out, ModelConfig(model="org/name"), config, answered=False)
    ref = tmp_path / "models--org--name" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    for commit in ("abc", "abc"):
        ref.write_text(commit)
        keep_settings(out, ModelConfig(model="org/name"), config, answered=True)
    ref.write_text("def")
    with pytest.raises(ValueError, match=r"other settings \(model\.hub_commit: abc then, def now"):
        keep_settings(out, ModelConfig(model="org/name"), config, answered=True)


@pytest.mark.slow
def test_sampled_answers_are_the_same_after_an_interruption_and_differ_by_seed(tiny_model, synthetic_data, tmp_path):
    def answers(name, seed=0):
        flags = {"batch_size": 5, "max_new_tokens": 6, "temperature": 1.0, "limit": 12, "seed": seed}
        out = tmp_path / name
        data = [str(synthetic_data / "test.jsonl")]
        generate(ModelConfig(model=str(tiny_model)), GenerateConfig(data=data, out=str(out), **flags))
        return out.read_text()

    whole = answers("whole.jsonl")
    lines = whole.splitlines(keepends=True)
    (tmp_path / "torn.jsonl").write_text("".join(lines[2:4] + lines[7:10]))
    shutil.copy(tmp_path / "whole.jsonl.settings.json", tmp_path / "torn.jsonl.settings.json")
    assert answers("torn.jsonl") == whole
    assert answers("other.jsonl", seed=1) != whole


def test_sampled_tokens_come_from_the_models_own_distribution(tiny_model, synthetic_data, tmp_path):
    """transformers would keep the 50 likeliest tokens, or what the model's files say."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.generate import GenerateConfig, LocalModel
    from drive_vlm.generate.rows import read_rows

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    settings = json.loads((model / "generation_config.json").read_text())
    picky = {"do_sample": True, "top_k": 5, "min_p": 0.2, "repetition_penalty": 1.5, "temperature": 0.1}
    (model / "generation_config.json").write_text(json.dumps(settings | picky))
    config = GenerateConfig(
        data=[str(synthetic_data / "test.jsonl")], out="", temperature=0.5, max_new_tokens=5, limit=4
    )
    samples, _ = read_rows(config)
    local, steps = LocalModel(ModelConfig(model=str(model)), config), []
    generate = local.network.generate

    def kept(**words):
        done = generate(**words, output_scores=True, output_logits=True, return_dict_in_generate=True)
        steps.extend(zip(done.scores, done.logits, strict=True))
        return done.sequences

    local.network.generate = kept
    assert len(list(local.answers([samples], config, []))) == 4 and steps
    for scores, logits in steps:
        assert torch.equal(scores, logits / 0.5)
