"""generate --json_schema: every answer follows the schema, in process and by a server; how many do without; what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.generate import GenerateConfig, generate
from drive_vlm.generate.json_schema import JsonSchema
from drive_vlm.sampling.grammar import Grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "description": {"type": "string", "maxLength": 12},
        "action": {"enum": ["move forward", "stop/slow down"]},
        "justification": {
            "type": "array",
            "items": {"enum": ["road is clear", "obstacle: car"]},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["description", "action", "justification"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def flags(data, out, **more):
    return GenerateConfig(data=[str(data / "test.jsonl")], out=str(out), limit=6, batch_size=3, **more)


def test_rows_end_where_the_grammar_may_stop_and_nowhere_else(tiny_model, schema):
    """Random logits, wider than the tokenizer: three rows of their own states and lengths, all of them JSON of the schema."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    asked = JsonSchema(str(schema))
    end, other, width, rows = tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer) + 13, 3
    ends = {end, other}
    grammar = Grammar(asked.grammar(), tokenizer, [end, other])
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        mask = grammar.begin()
        said: list[list[int]] = [[] for _ in range(rows)]
        ids = torch.full((rows, 2), 5)
        for _ in range(300):
            scores = mask(ids, torch.randn(rows, width, generator=generator))
            for row, tokens in enumerate(said):
                text = tokenizer.decode(tokens)
                if ends & set(tokens):
                    # It has ended: generate pads it, and nothing is masked.
                    assert scores[row].isfinite().all()
                    continue
                assert scores[row, end].isfinite() == scores[row, other].isfinite() == asked.fits(text), text
                assert not scores[row, len(tokenizer) :].isfinite().any()
            drawn = scores.softmax(-1).multinomial(1, generator=generator)
            for row, tokens in enumerate(said):
                tokens.append(other if ends & set(tokens) else int(drawn[row]))
            ids = torch.cat([ids, torch.tensor([[tokens[-1]] for tokens in said])], dim=1)
            if all(ends & set(tokens) for tokens in said):
                break
        texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]
        assert all(map(asked.fits, texts)) and len(set(texts)) == rows, texts
        # No blanks between the parts, of which a model may write any number.
        assert all(text.startswith('{"description":"') for text in texts)


@pytest.mark.slow
def test_answers_with_and_without_a_schema(run, tiny_model, synthetic_data, schema, tmp_path):
    out = tmp_path / "p.jsonl"
    words = [sys.executable, "-m", "drive_vlm", "generate", "--model", tiny_model, "--data", synthetic_data / "test.jsonl", "--limit", 6,
             "--max_new_tokens", 160, "--temperature", 1, "--json_schema", schema, "--out"]  # fmt: skip
    done = run([*words, out], timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"6 of 6 answers follow {schema} (written under it)" in done.stdout
    answers = [json.loads(json.loads(line)["prediction"]) for line in out.read_text().splitlines()]
    assert {answer["action"] for answer in answers} <= set(SCHEMA["properties"]["action"]["enum"])
    assert all(list(answer) == list(SCHEMA["properties"]) for answer in answers)
    # The same file again, written freely: refused, since its answers were held to the schema.
    same = {"max_new_tokens": 160, "temperature": 1.0, "json_schema": str(schema), "json_free": True}
    with pytest.raises(ValueError, match=r"its answers were made with other settings \(json_schema: "):
        generate(ModelConfig(model=str(tiny_model)), flags(synthetic_data, out, **same))


def test_free_answers_are_counted(tiny_model, synthetic_data, schema, tmp_path, capsys):
    out = tmp_path / "p.jsonl"
    config = flags(synthetic_data, out, json_schema=str(schema), json_free=True, max_new_tokens=2)
    generate(ModelConfig(model=str(tiny_model)), config)
    assert f"0 of 6 answers follow {schema} (written freely)" in capsys.readouterr().out
    # Without the schema these answers would be the same: the file goes on.
    generate(ModelConfig(model=str(tiny_model)), flags(synthetic_data, out, max_new_tokens=2))


@pytest.mark.parametrize("free", [False, True])
def test_a_server_is_asked_for_the_schema(chat_server, synthetic_data, schema, tmp_path, free, capsys):
    right = json.dumps({"description": "x", "action": "move forward", "justification": ["road is clear"]}, indent=1)
    answers = iter([right, right, f"```{right}```", right.replace("clear", "wet"), "", right[:-3]] * 9)
    chat_server.answer = lambda body: next(answers)
    out = tmp_path / "p.jsonl"
    server = {"backend": "openai", "base_url": chat_server.url, "workers": 1}
    generate(ModelConfig(model="m"), flags(synthetic_data, out, json_schema=str(schema), json_free=free, **server))
    wanted = (
        None if free else {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    )
    assert all(body.get("response_format") == wanted for body in chat_server.requests)
    assert (
        f"of 6 answers follow {schema} ({'written freely' if free else 'written under it'})" in capsys.readouterr().out
    )
    kept = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert sum(map(JsonSchema(str(schema)).fits, kept)) == kept.count(right) >= 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[1]", "a schema is a JSON object, this is a list"),
        ('{"type": "thing"}', "no JSON schema: type: 'thing' is not valid"),
        ('{"not": {"type": "string"}}', "llguidance cannot hold an answer to it"),
        ('{"$ref": "http://127.0.0.1:9/x.json"}', "llguidance cannot hold an answer to it"),
    ],
)
def test_a_schema_that_cannot_be_obeyed_is_one_line_before_the_model(text, told, tmp_path):
    path = tmp_path / "s.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=told) as stopped:
        generate(ModelConfig(model="nowhere"), GenerateConfig(["no.jsonl"], "out.jsonl", json_schema=str(path)))
    assert "\n" not in str(stopped.value) and str(path) in str(stopped.value)


@pytest.mark.parametrize(
    ("package", "told"), [("llguidance", "or --json_free"), ("jsonschema", "answers are checked with")]
)
def test_a_missing_package_is_one_line(package, told, schema, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"{told}.*|which is missing") as stopped:
        JsonSchema(str(schema)).grammar()
    assert "pip install drive-vlm[json]" in str(stopped.value) and told in str(stopped.value)


def test_free_answers_need_the_schema_they_are_counted_by():
    with pytest.raises(ValueError, match="Give the schema"):
        generate(ModelConfig(model="nowhere"), GenerateConfig(["no.jsonl"], "out.jsonl", json_free=True))


def test_what_fits(schema):
    """Blanks and the order of keys are free; other words, numbers that are none and deep nesting do not fit; nothing is fetched."""
    asked = JsonSchema(str(schema))
    right = {"justification": ["obstacle: car"], "action": "stop/slow down", "description": ""}
    assert asked.fits(json.dumps(right, indent=4))
    for text in (
        "",
        "{}",
        f"{json.dumps(right)}.",
        json.dumps(right | {"more": 1}),
        '{"description": NaN}',
        "[" * 100_000,
    ):
        assert not asked.fits(text)
    far = Path(schema).with_name("far.json")
    far.write_text('{"$ref": "http://127.0.0.1:9/x.json"}')
    with pytest.raises(ValueError, match="write it into the file"):
        JsonSchema(str(far)).fits("1")


def test_rollouts_take_no_schema(capsys):
    from drive_vlm.stages import run

    with pytest.raises(SystemExit):
        run(
            "grpo",
            ["--rewards", "structure", "--model", "x", "--data", "x", "--output_dir", "x", "--json_schema", "s.json"],
        )
    assert "--json_schema" in capsys.readouterr().err
