"""What a case of tools/bench/gpu.py measures, in a process of its own: environment, training, TRL next to it, saving and resuming."""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_models
import measure
from gpu_parts import PARTS, Case

from drive_vlm.store.cache import read_json, write_json


def imports() -> None:
    """What every case needs; none of it starts CUDA."""
    import bench_plan  # noqa: F401
    import torch  # noqa: F401
    import transformers.trainer  # noqa: F401

    import drive_vlm.stages.engine.run
    import drive_vlm.stages.sft  # noqa: F401


def gpu_works() -> int:
    """0 when this process can compute on a GPU."""
    import torch

    return int(float(torch.ones(2, device="cuda").sum()) != 2.0)


def run_case(case: Case, work: Path, result: Path) -> None:
    """Measure; the figures are in `result` when they are there, and the process may end then."""
    import torch

    cuda = torch.cuda.is_available()
    if case.memory and cuda:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, case.memory / torch.cuda.get_device_properties(0).total_memory)
        )
    RUNS[case.run](case, work, result, cuda)


def finish(result: Path, figures: dict[str, Any]) -> None:
    """Write the figures (rank 0) and end: the run's own end would write gigabytes of random weights."""
    if os.environ.get("RANK", "0") == "0":
        write_json(result, {"figures": figures})
    os._exit(0)


# ---- a: environment


def environment(case: Case, work: Path, result: Path, cuda: bool) -> None:
    """Versions, doctor's verdicts, the rates of copying (bytes read and written) and of a bf16 product."""
    import torch

    from drive_vlm.doctor import examine
    from drive_vlm.doctor.finding import Setting
    from drive_vlm.launch.manifest import machine, versions

    found = list(examine(Setting(work, offline=True)))
    verdicts = {verdict: sum(item.verdict == verdict for item in found) for verdict in ("ok", "warn", "fail")}
    size, side = (1 << 30, 8192) if cuda else (1 << 24, 512)
    device = "cuda" if cuda else "cpu"
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    copying, product = seconds_of(lambda: target.copy_(source)), seconds_of(lambda: left @ left)
    figures: dict[str, Any] = {f"doctor {name}": count for name, count in verdicts.items()}
    figures |= {"copy GB/s": 2 * size / copying / 1e9, "matmul TFLOP/s": 2 * side**3 / product / 1e12}
    if cuda:
        figures |= {
            "memory GiB": torch.cuda.get_device_properties(0).total_memory / 2**30,
            "GPUs": torch.cuda.device_count(),
        }
    todo = [{"check": item.check, "seen": item.seen, "todo": item.todo} for item in found if item.verdict != "ok"]
    finish(result, figures | {"versions": versions(), "machine": machine(), "findings": todo})


def seconds_of(call: Callable[[], Any], repeats: int = 10) -> float:
    """The median of `repeats` calls behind one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        begin = now()
        call()
        times.append(now() - begin)
    return sorted(times)[repeats // 2]


def now() -> float:
    """The time when all that was asked of the GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- training


def words_of(case: Case, work: Path, cuda: bool) -> list[str]:
    """The flags of the run: the recipe's, then the case's."""
    model = gpu_models.directory(work, case.model, cuda)
    values: dict[str, Any] = {
        "model": model,
        "data": gpu_models.rows_of(work, case.rows, cuda),
        "output_dir": work / "runs" / case.name,
        "max_steps": case.warm_up + case.steps,
        **{name: value for name, value in measure.TRAINING.items() if name != "disable_tqdm"},
        "logging_steps": 1000,
        **({} if cuda else {"use_cpu": True}),
        **case.words,
    }
    if values.get("rewards") == "length":
        values["rewards"] = f"{gpu_models.reward_file(work)}:build"
    if not cuda:
        values |= toy_values(case, values)
    recipe = recipe_words(case.recipe) if case.recipe else []
    if recipe:
        # It has a schedule of its own.
        del values["lr_scheduler_type"]
    if case.features:
        values["feature_cache"] = features(work, case, values, model)
    return [*recipe, *measure.flags(values)]


def toy_values(case: Case, values: dict[str, Any]) -> dict[str, Any]:
    """What a CPU run of the same case takes instead: lengths and groups that end in seconds, float32."""
    small = {
        "max_length": 512,
        "num_frames": 4,
        "max_completion_length": 8,
        "num_generations": 2,
        "lora_rank": 4,
        "dataloader_num_workers": 0,
    }
    found = {
        name: value
        for name, value in small.items()
        if name in values or (case.recipe and name not in ("max_completion_length", "num_generations", "lora_rank"))
    }
    if "num_generations" in values or case.stage == "grpo":
        found |= {
            "num_generations": 2,
            "max_completion_length": 8,
            "per_device_train_batch_size": 2,
            "global_batch_size": 2,
        }
    if case.recipe or ("bf16" in values and case.model != "toy"):
        found["bf16"] = False
    return found


def recipe_words(recipe: str) -> list[str]:
    """The flags that a recipe gives its command."""
    root = measure.TOOLS.parent
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "DRIVE_VLM_"))}
    done = subprocess.run(
        ["bash", root / "recipes" / recipe],
        env=env | {"DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    words = shlex.split(done.stdout.replace("\\\n", " "))
    return words[words.index("drive_vlm") + 2 :]


def features(work: Path, case: Case, values: dict[str, Any], model: Path) -> Path:
    """The feature cache of the case's rows, by tools/cache_features.py in this process: its weights are random ones, too."""
    import runpy
    import sys

    out = work / "features" / case.model
    if not out.is_dir():
        words = {"model": model, "data": values["data"], "num_frames": values["num_frames"], "out": out}
        before = sys.argv
        sys.argv = [str(measure.TOOLS / "cache_features.py"), *measure.flags(words)]
        try:
            with gpu_models.random_weights(device()):
                runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            sys.argv = before
    return out


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def train(case: Case, work: Path, result: Path, cuda: bool) -> None:
    """Train the warm-up and the measured steps of `case` through the command itself."""
    words = words_of(case, work, cuda)
    with gpu_models.random_weights(device()):
        measure.run_stage(case.stage, words, lambda trainer: watch(trainer, case, work, result, words, cuda))


def watch(trainer: Any, case: Case, work: Path, result: Path, words: list[str], cuda: bool) -> None:
    """Let the trainer count and time the measured steps, and end the process behind the last of them."""
    import torch
    from transformers import TrainerCallback

    meter = Meter(trainer)

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == case.warm_up:
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                meter.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == case.warm_up + case.steps:
                figures = meter.figures(case.steps)
                figures |= memory_figures(case, words, meter, cuda)
                figures |= losses_against(case, work, meter.losses)
                finish(result, figures)

    trainer.add_callback(Watch())


class Meter:
    """Counts and times what a trainer does: patches of this one object, around the methods that every batch passes."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.losses: list[Any] = []
        self.batch: Any = None
        self.size = 0
        self.parts: dict[str, float] = {}
        self.begin()
        step, count = trainer.training_step, trainer.count_batch

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = step(*args, **kwargs)
            # A tensor still: reading it now would make the CPU wait for the GPU in every step.
            self.losses.append(loss.detach())
            return loss

        def count_batch(tokens: int, labels: int, tiles: int) -> None:
            self.rows += len(trainer.sample_ids)
            self.tokens += tokens
            self.labels += labels
            self.tiles += tiles
            count(tokens, labels, tiles)

        trainer.training_step, trainer.count_batch = training_step, count_batch
        forward = trainer.compute_loss

        def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.note(inputs)
            return forward(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss
        if hasattr(trainer, "_generate_and_score_completions"):
            self.time_phases(trainer)

    def time_phases(self, trainer: Any) -> None:
        """GRPO: seconds of sampling, of scoring without gradients, and of the rewards."""
        import torch

        def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def inside(*args: Any, **kwargs: Any) -> Any:
                # Learning calls the function of scoring as well, with gradients.
                if name == "scoring" and torch.is_grad_enabled():
                    return call(*args, **kwargs)
                begin = now()
                found = call(*args, **kwargs)
                self.parts[name] = self.parts.get(name, 0.0) + now() - begin
                return found

            return inside

        for name, method in (
            ("sampling", "_generate"),
            ("scoring", "_get_per_token_logps_and_entropies"),
            ("reward", "_calculate_rewards"),
        ):
            setattr(trainer, method, timed(name, getattr(trainer, method)))

    def note(self, inputs: dict[str, Any]) -> None:
        """The shape of the largest micro-batch: [rows, tokens, tiles, labels], or what the plan takes of GRPO."""
        if "completion_ids" in inputs:
            pictures = inputs["pictures"]
            shape: Any = {
                "prompt": inputs["prompt_ids"].shape[1],
                "completion": inputs["completion_ids"].shape[1],
                "tiles": sum(len(one.get("pixel_values", ())) for one in pictures) / len(pictures),
            }
            size = shape["prompt"] + shape["completion"]
        else:
            rows, tokens = inputs["input_ids"].shape
            tiles = inputs["pixel_values"].shape[0] if inputs.get("pixel_values") is not None else 0
            labels = inputs["labels"] if "labels" in inputs else inputs["completion_mask"] - 1
            shape, size = (
                [rows, tokens, tiles, int((labels != (-100 if "labels" in inputs else -1)).sum())],
                rows * tokens,
            )
        if self.batch is None or size > self.size:
            self.batch, self.size = shape, size

    def begin(self) -> None:
        self.rows = self.tokens = self.labels = self.tiles = 0
        self.size, self.batch = 0, None
        self.parts.clear()
        self.started = now()

    def figures(self, steps: int) -> dict[str, Any]:
        """Rates of all ranks since `begin`, and the model FLOPs used, with and without those of the tower's tiles."""
        from drive_vlm.launch.topology import read_topology
        from drive_vlm.stages.engine.throughput import device_peak_flops

        seconds, ranks = now() - self.started, read_topology().world_size
        # Ranks have equal shares of a step.
        rows, tokens, labels, tiles = (ranks * count for count in (self.rows, self.tokens, self.labels, self.tiles))
        found: dict[str, Any] = {
            "seconds a step": seconds / steps,
            "samples/s": rows / seconds,
            "tokens/s": tokens / seconds,
        }
        if peak := device_peak_flops(None):
            flops, peak = self.trainer.parts.flops, peak * ranks
            whole, without = flops(tokens, labels, tiles), flops(tokens, labels, 0)
            found |= {"MFU": whole / seconds / peak, "MFU without tower": without / seconds / peak}
        if self.parts:
            # What GRPO samples are completions: their tokens are those with labels.
            found |= {f"{name} s": spent / steps for name, spent in self.parts.items()}
            found |= {"learning s": (seconds - sum(self.parts.values())) / steps}
            found |= {"sampled tokens/s": labels / self.parts["sampling"]}
        self.losses = [float(loss) for loss in self.losses]
        return found


def memory_figures(case: Case, words: list[str], meter: Meter, cuda: bool) -> dict[str, Any]:
    """The peak next to the plan's for the largest micro-batch that was seen. On a CPU the plan is compared by bench_plan.py."""
    import torch

    if not cuda:
        return {}
    import bench_plan

    peak = torch.cuda.max_memory_allocated() / 2**30
    shipped = [*words]
    if case.model != "toy":
        place = len(shipped) - shipped[::-1].index("--model")
        shipped[place] = gpu_models.MODELS[case.model].shipped
    found = {"peak GiB": peak}
    if case.memory:
        found["limit GiB"] = case.memory / 2**30
    try:
        planned = bench_plan.predict(
            case.stage, [*shipped, "--world_size", os.environ.get("WORLD_SIZE", "1")], meter.batch
        )
    except ValueError as error:
        return found | {"plan": f"none: {str(error)[:200]}"}
    most = max(value for name, value in planned.items() if name != "static") / 2**30
    return found | {"planned GiB": most, "plan error": most / peak - 1}


def losses_against(case: Case, work: Path, losses: list[float]) -> dict[str, Any]:
    """The losses; with `against` also their largest relative difference, and whether that is within the tolerance."""
    found: dict[str, Any] = {"losses": losses, "loss": losses[-1]}
    if case.against is None:
        return found
    name, tolerance = case.against
    letter = next(letter for letter, part in PARTS.items() if case in part.cases)
    file = work / f"{letter}-{name}.json"
    if not file.is_file() or "figures" not in (before := read_json(file)):
        return found | {"equal": f"not known: {name} has no figures"}
    apart = max(abs(a / b - 1) for a, b in zip(losses, before["figures"]["losses"], strict=False))
    return found | {"apart": apart, "equal": apart <= tolerance}


# ---- TRL on the same rows


def peer(case: Case, work: Path, result: Path, cuda: bool) -> None:
    """TRL's SFTTrainer as it comes, on the rows of the packed case before it: the same tokens a step, dtype, optimizer, frozen tower."""
    import bench_sft
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import freeze

    rows = gpu_models.rows_of(work, case.rows, cuda)
    dataset = bench_sft.peer_dataset(rows)
    batch = 12 if cuda else 2
    with gpu_models.random_weights(device()):
        family = load_family(
            ModelConfig(model=str(gpu_models.directory(work, case.model, cuda))),
            torch.bfloat16 if cuda else torch.float32,
        )
    freeze(family.model, family.parts, ["vision_tower"])
    own = {name: value for name, value in measure.TRAINING.items() if name not in ("disable_tqdm",)}
    config = SFTConfig(
        output_dir=str(work / "runs" / "trl"), per_device_train_batch_size=batch, bf16=cuda, gradient_checkpointing=False, use_cpu=not cuda,
        max_steps=case.warm_up + case.steps, max_length=None, logging_steps=1, dataloader_num_workers=4 if cuda else 0, **own,
    )  # fmt: skip
    begun: dict[str, float] = {}

    class Clock(TrainerCallback):
        tokens = 0.0

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "num_tokens" not in (logs or {}):
                return
            if state.global_step == case.warm_up:
                begun.update(seconds=now(), tokens=logs["num_tokens"])
            if state.global_step == case.warm_up + case.steps:
                spent = now() - begun["seconds"]
                figures: dict[str, Any] = {
                    "seconds a step": spent / case.steps,
                    "samples/s": batch * case.steps / spent,
                    "tokens/s": (logs["num_tokens"] - begun["tokens"]) / spent,
                }
                finish(result, figures | ({"peak GiB": torch.cuda.max_memory_allocated() / 2**30} if cuda else {}))

    SFTTrainer(
        family.model, config, train_dataset=dataset, processing_class=family.processor, callbacks=[Clock()]
    ).train()


# ---- saving and resuming


def save(case: Case, work: Path, result: Path, cuda: bool) -> None:
    """Seconds of writing a checkpoint, from the end of its step to its marker, and its bytes."""
    from transformers import TrainerCallback

    words = words_of(case, work, cuda)
    out = work / "runs" / "saved"
    shutil.rmtree(out, ignore_errors=True)
    words[words.index("--output_dir") + 1] = str(out)

    def change(trainer: Any) -> None:
        begun: list[float] = []

        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                begun.append(now())

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                spent = now() - begun[-1]
                written = out / f"checkpoint-{state.global_step}"
                size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
                finish(result, {"save s": spent, "GiB": size / 2**30})

        trainer.add_callback(Watch())

    with gpu_models.random_weights(device()):
        measure.run_stage(case.stage, words, change)


def resume(case: Case, work: Path, result: Path, cuda: bool) -> None:
    """Seconds from the start of the command, its imports done, to the end of the first step behind the checkpoint of `save`."""
    from transformers import TrainerCallback

    words = words_of(case, work, cuda)
    words[words.index("--output_dir") + 1] = str(work / "runs" / "saved")
    begin = now()

    def change(trainer: Any) -> None:
        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                finish(result, {"resume to first step s": now() - begin, "step": state.global_step})

        trainer.add_callback(Watch())

    with gpu_models.random_weights(device()):
        measure.run_stage(case.stage, [*words, "--resume", "auto"], change)


RUNS = {"environment": environment, "train": train, "peer": peer, "save": save, "resume": resume}
