"""What a run writes and reads back: whole checkpoints, the weights in them, DeepSpeed's shards for another world size.

The life of a resume, also on another number of ranks (docs/running.md says what it promises):

    in checkpoint-N                        written by                    read by                              refused where it differs
    trained weights, links to the frozen   `_save_weights`               build.weights_to_load, with the      `check_trained`: other parameters
    ones; of LoRA the adapter                                            model                                train
    optimizer: global_stepN/ of DeepSpeed, the engine; the Trainer       `_load_engine`, on other ranks by    launch/checkpoint.check_layout:
    else optimizer.pt                                                    `convert_to_universal`; the Trainer  engine, ZeRO stage, optimizer
    scheduler.pt, trainer_state.json       the Trainer                   the Trainer; `flags_win`: rate and   -
                                                                         schedule are those of the flags
    rng_state*.pth, one a rank             the Trainer                   the Trainer; a rank without a file   -
                                                                         begins with --seed: dropout differs
    data_cursor.json                       trainer.save_data_state       DataCursor.check (cursor.py)         other rows, order, seed, global batch
    bad_rows.json                          trainer.save_data_state       trainer.check_resume                 damaged
    complete.json, last of all             contract.complete             contract.read_complete               a file is missing or of another
                                                                                                              size, a JSON file has other words
    NAME_state.json of RL stages           their save_data_state         their check_resume                   other rewards, sampling, detections

In order: training_arguments._find_resume (which checkpoint, does its layout fit, must shards be converted) -> build_parts (weights)
-> trainer.check_resume (all checks that need data and model, and `check_code` of pickles, before anything is trained) -> `_load_engine` or the Trainer's own
loading -> the Trainer passes over the batches that were learned from, which the sampler alone is asked for. The rows of a step do
not depend on the number of ranks (data/order.py), so they stay the same. With --global_batch_size accumulation makes up for the ranks;
without it the global batch changes with them, and the cursor refuses.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from drive_vlm.launch import checkpoint as contract
from drive_vlm.launch.deepspeed import zero_stage
from drive_vlm.models.loading import stored_weights
from drive_vlm.models.lora import odd_weights, record_base
from drive_vlm.stages.engine.build import RunParts
from drive_vlm.stages.engine.heartbeat import Heartbeat
from drive_vlm.stages.engine.trust import NEVER, refuse_code, shards_of, states_of
from drive_vlm.store.secrets import without_secrets

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

# `python -m deepspeed.checkpoint.ds_to_universal` that ends with the process that started it, its own workers with it: standard
# input is a pipe that only that process holds open. One that lived on would write into the conversion of the next run.
_CONVERTER = """
import os, signal, threading

def follow():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=follow, daemon=True).start()
from deepspeed.checkpoint import ds_to_universal
ds_to_universal.main(ds_to_universal.parse_arguments())
"""
# Names of an optimizer group's settings, as users know them.
_SETTINGS = {"initial_lr": "learning_rate", "lr": "rate of the next step"}


class CheckpointMixin(Trainer):
    """Checkpoints by the contract of launch/checkpoint.py; stands before a transformers Trainer in the bases of every stage.

    Writing (`_save_checkpoint`), in an order that survives a kill at any point:

    1. The main process checks the free space and begins `.saving/checkpoint-N`; the others wait.
    2. All ranks write into it: weights that train, links to the frozen ones, optimizer, scheduler, random states, data.
    3. All ranks wait for each other; then the main process writes the marker, last of all, and moves the directory in place.
    4. Old checkpoints go, but for --keep and the best.

    Reading: build_parts loads the model from the checkpoint; `_load_engine` (DeepSpeed) or `_load_from_checkpoint` (weights) and the Trainer's own for the rest. A checkpoint of
    another number of DeepSpeed processes (`parts.resume.convert`) first becomes a universal one.
    """

    parts: RunParts
    heartbeat: Heartbeat
    # Any: peft, DeepSpeed and DDP wrap it, and all of them are asked for what only one has.
    model: Any
    model_wrapped: Any

    @property
    def out(self) -> Path:
        """--output_dir."""
        assert self.args.output_dir is not None, "training_arguments gives a default"
        return Path(self.args.output_dir)

    # writing

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """Replaces transformers' Trainer._save_checkpoint (5.23), which writes where readers look and removes old checkpoints
        by their time stamps."""
        self.heartbeat.beat("save")
        out, step = self.out, self.state.global_step
        saving = out / ".saving" / f"checkpoint-{step}"
        if self.args.should_save:
            contract.require_space(out, self._expected_bytes())
            contract.begin(out, step)
        _barrier()
        best = self.state.best_global_step
        if best and (best == step or (out / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(out / f"checkpoint-{best}")
        with self.explain_write_errors(f"{saving}: the checkpoint of step {step}"):
            self._write_checkpoint(saving)
        _barrier()
        if self.args.should_save:
            with self.explain_write_errors(f"{saving}: the checkpoint of step {step}"):
                written = contract.complete(saving, self.checkpoint_facts())
            contract.remove_old(out, written, self.parts.keep, self.state.best_model_checkpoint)
        _barrier()

    def _write_checkpoint(self, directory: Path) -> None:
        self.store_flos()
        self.save_model(str(directory), _internal_call=True)
        self._save_optimizer_and_scheduler(str(directory))
        self._save_scaler(str(directory))
        self._save_rng_state(str(directory))
        self.save_data_state(directory)
        if self.args.should_save:
            states: Any = self.state.stateful_callbacks
            for part in (*self.callback_handler.callbacks, self.control):
                if isinstance(part, ExportableState):
                    states[type(part).__name__] = part.state()
            self.state.save_to_json(str(directory / TRAINER_STATE_NAME))

    def save_data_state(self, directory: Path) -> None:
        """What else belongs to a checkpoint; the data cursor (trainer.py)."""

    def checkpoint_facts(self) -> contract.CheckpointFacts:
        config = self.args.deepspeed if isinstance(self.args.deepspeed, dict) else None
        return contract.CheckpointFacts(
            step=self.state.global_step,
            world_size=self.args.world_size,
            zero_stage=zero_stage(config),
            deepspeed=self.is_deepspeed_enabled,
            optimizer=str(getattr(self.args.optim, "value", self.args.optim)),
            trained=_digest_of_names(self.model),
        )

    def _expected_bytes(self) -> int:
        """Bytes of the next checkpoint: those of the last one, or weights, fp32 masters and two moments of what trains."""
        if found := contract.whole_checkpoints(self.out):
            own = [path.stat() for path in found[-1].rglob("*") if path.is_file()]
            return sum(stat.st_size for stat in own if stat.st_nlink == 1)
        parameters = [(_count(p), p.element_size(), p.requires_grad) for p in self.model.parameters()]
        parameters += [(t.numel(), t.element_size(), False) for t in self.parts.detached.values()]
        masters = 12 if self.is_deepspeed_enabled else 8
        copies = 2 if self.is_deepspeed_enabled else 1
        return sum(n * (copies * size + masters) if trains else n * size for n, size, trains in parameters)

    @contextlib.contextmanager
    def explain_write_errors(self, subject: str) -> Iterator[None]:
        """Turn an I/O error into a ValueError that names the last complete checkpoint. The sentence begins with `subject`."""
        try:
            yield
        # RuntimeError is how torch.save reports a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{subject} could not be written ({str(error).splitlines()[0]}); "
                f"{shutil.disk_usage(self.out).free / 2**20:,.0f} MiB are free there. {self.what_is_safe()}: fix the "
                "cause and go on with --resume auto."
            ) from error

    def what_is_safe(self) -> str:
        """The last complete checkpoint, in words."""
        last = max(contract.whole_checkpoints(self.out), key=contract.step_of, default=None)
        return f"The last complete checkpoint is {last.name if last else 'none'}, untouched"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights of a checkpoint: those that train, and links to the one copy of the frozen ones.

        Replaces Trainer._save (transformers 5.23), which would write the frozen weights again into every checkpoint.
        """
        # The Trainer pickles its arguments into training_args.bin, a token of --hub_token in clear.
        with without_secrets(self.args):
            self._save_weights(output_dir, state_dict)

    def _save_weights(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        if hasattr(self.model, "peft_config"):
            return self._save_adapter(output_dir, state_dict)
        directory = Path(output_dir) if output_dir else self.out
        frozen = {name for name, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        if isinstance(self.model, PreTrainedModel):
            state_dict = (self.model.state_dict() if state_dict is None else state_dict) | self.parts.detached
            frozen |= self.parts.detached.keys()
            # DeepSpeed's copies no longer show that two names are one weight, and it would be written twice.
            tied = self.model.all_tied_weights_keys
            state_dict = {name: tensor for name, tensor in state_dict.items() if tied.get(name) not in state_dict}
        if directory.parent.name != ".saving" or not isinstance(self.model, PreTrainedModel) or not frozen:
            return super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return None
        assert state_dict is not None
        super()._save(output_dir, {name: tensor for name, tensor in state_dict.items() if name not in frozen})
        single = directory / "model.safetensors"
        if single.is_file():
            single.rename(directory / "model-trained.safetensors")
        store = self._frozen_store({name: tensor for name, tensor in state_dict.items() if name in frozen})
        contract.link_or_copy(store.glob("*.safetensors"), directory)
        _write_index(directory)

    def _save_adapter(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        """Write the adapter that trains, without the frozen copy ("ref") that preference training and GRPO compare with.

        --model has that one, and under ZeRO-3 `state_dict` lacks its weights.
        """
        # A patch of PeftModel.save_pretrained (peft 0.21) for this one call: Trainer._save names no adapters.
        own = self.model.save_pretrained
        # Embeddings under an adapter are those of the base, which no adapter directory holds.
        self.model.save_pretrained = functools.partial(own, selected_adapters=["default"], save_embedding_layers=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del self.model.save_pretrained
        if self.args.should_save:
            directory = Path(output_dir or self.out)
            record_base(self.model, directory, self.parts.family.added)
            # At the first save, not when the run's result is needed.
            if odd := odd_weights(self.model, directory / "adapter_model.safetensors"):
                raise ValueError(f"{directory}: the saved adapter would not be loaded again, since it {odd}.")

    def _frozen_store(self, weights: dict[str, torch.Tensor]) -> Path:
        """Directory with the frozen weights as safetensors; written when it is not whole, or holds those of another model."""
        store = self.out / ".frozen"
        if "_frozen_hash" not in self.__dict__:
            self._frozen_hash = _digest_of_weights(weights)
        mark = store / "content_hash"
        if not mark.is_file() or mark.read_bytes() != self._frozen_mark(store):
            shutil.rmtree(store, ignore_errors=True)
            self.model.save_pretrained(store, state_dict=weights)
            for file in store.iterdir():
                if file.suffix == ".safetensors":
                    file.rename(store / file.name.replace("model", "model-frozen", 1))
                else:
                    file.unlink()
            for file in store.iterdir():
                contract.flush(file)
            mark.write_bytes(self._frozen_mark(store))
            contract.flush(mark)
            contract.flush(store)
        return store

    def _frozen_mark(self, store: Path) -> bytes:
        """Hash of the frozen weights, and the files of `store` with their sizes: one of them may be lost or cut off."""
        files = {file.name: file.stat().st_size for file in sorted(store.glob("*.safetensors"))}
        return json.dumps({"hash": self._frozen_hash, "files": files}).encode()

    # reading

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> Any:
        """Trainer._prepare_for_training (transformers 5.23), but for DeepSpeed's part of a resume.

        The Trainer would load the engine strictly, but frozen weights are in no DeepSpeed shard: they were loaded with the model. So it
        is given no checkpoint, and `_load_engine` loads instead.
        """
        if not self.is_deepspeed_enabled:
            # It calls _load_optimizer_and_scheduler.
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        engine = self.model_wrapped
        # A patch of DeepSpeedEngine.save_checkpoint (0.19), which the Trainer calls without this argument.
        engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        if resume_from_checkpoint is not None:
            assert self.parts.resume is not None, "only a resumed run loads"
            universal = self.parts.resume.convert
            assert universal == engine.load_universal_checkpoint(), "training_arguments sets the same for DeepSpeed"
            with flags_win(self.optimizer, self.lr_scheduler, self.args.should_save):
                self._load_engine(Path(resume_from_checkpoint), universal)
                super()._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer._load_optimizer_and_scheduler (transformers 5.23), but the flags decide on rate, schedule and the rest."""
        if checkpoint is not None:
            with flags_win(self.optimizer, self.lr_scheduler, self.args.should_save):
                super()._load_optimizer_and_scheduler(checkpoint)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *rest: Any
    ) -> tuple[int, int]:
        """Trainer._init_training_state (transformers 5.23), but the flags say how often is logged, saved and evaluated, and a
        run whose steps are done trains no further one: the Trainer would begin the epoch in which --max_steps lies again."""
        begun = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *rest)
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else begun

    def _load_engine(self, checkpoint: Path, universal: bool) -> None:
        """Load DeepSpeed's shards, on any number of processes.

        1. Where they are of another number (`universal`), the main process converts them to a universal checkpoint; all wait.
        2. The engine loads.
        3. What DeepSpeed 0.19 gets wrong in ZeRO-3's groups is put right; the groups' settings by `flags_win`, around it.
        4. The universal copy is removed, also one that a killed run has left here.
        """
        engine = self.model_wrapped
        # DeepSpeed's key is of the whole run, though each checkpoint may have another number of shards.
        engine._config.load_universal_checkpoint = universal
        if universal and self.args.should_save:
            convert_to_universal(checkpoint)
        _barrier()
        loaded, _ = engine.load_checkpoint(str(checkpoint), load_module_strict=False)
        assert loaded is not None, "read_complete found every file"
        if universal:
            # Bug of DeepSpeed 0.19's universal loading: all ZeRO-3 groups get one step tensor, which then counts once a
            # group. They also get the settings of the first group, so that biases and norms would decay, until `flags_win`
            # sets them.
            for state in engine.optimizer.optimizer.state.values():
                if isinstance(state.get("step"), torch.Tensor):
                    state["step"] = state["step"].clone()
        _barrier()
        if self.args.should_save:
            remove_universal(checkpoint)

    def check_code(self, checkpoint: Path) -> None:
        """Raises ValueError on all ranks for pickles that would run code. Each rank reads its share, before one of them loads."""
        share, refused = slice(self.args.process_index, None, self.args.world_size), ""
        try:
            refuse_code(states_of(checkpoint)[share], False, NEVER)
            if self.is_deepspeed_enabled:
                refuse_code(shards_of(checkpoint)[share], self.parts.flags.run.trust_checkpoint)
        except ValueError as error:
            refused = str(error)
        found: list[Any] = [refused]
        if dist.is_initialized():
            found = [None] * dist.get_world_size()
            dist.all_gather_object(found, refused)
        if any(found):
            raise ValueError(next(filter(None, found)))

    def check_trained(self, checkpoint: Path) -> None:
        """Raises ValueError when other parameters train than those of the checkpoint."""
        saved = contract.read_complete(checkpoint).trained
        if saved != _digest_of_names(self.model):
            raise ValueError(
                f"{checkpoint}: other parameters trained in that run than in this one. Resume with the same --freeze, --lora_rank, "
                "--lora_targets and --model, or start again in another --output_dir."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Trainer._load_from_checkpoint (transformers 5.23) for adapters only; see load_saved_weights."""
        model = self.model if model is None else model
        if isinstance(model, PreTrainedModel):
            load_saved_weights(model, resume_from_checkpoint)
        else:
            # A PeftModel is no PreTrainedModel. An adapter's names are the same on disk, so the Trainer's own loading works.
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Trainer._load_best_model (transformers 5.23) for adapters only, as _load_from_checkpoint."""
        best = self.state.best_model_checkpoint
        assert best is not None
        self.check_code(Path(best))
        if self.is_deepspeed_enabled:
            self._load_engine(Path(best), contract.read_complete(Path(best)).world_size != self.args.world_size)
        elif isinstance(self.model, PreTrainedModel):
            load_saved_weights(self.model, best)
        else:
            super()._load_best_model()


@contextlib.contextmanager
def flags_win(optimizer: Any, schedule: Any, show: bool) -> Iterator[None]:
    """Inside, a checkpoint's optimizer and schedule are loaded; what the flags set is then as the flags say.

    torch and DeepSpeed load rate, weight decay, betas and the schedule's base rates with the moments, so that the flags of a
    resumed run would have no effect. Afterwards each group has its settings of before, and the rate that the new schedule has
    at the step that was reached: the Trainer would compute it one step later. With `show` the differences are printed.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR), "training_flags.py offers no other"
    # The first group alone is compared: DeepSpeed's universal loading gives its settings to all of them.
    then = dict(optimizer.param_groups[0]) | {"initial_lr": schedule.base_lrs[0], "lr": schedule._last_lr[0]}
    for group, settings, factor in zip(optimizer.param_groups, own, schedule.lr_lambdas, strict=True):
        group.update(settings, lr=settings["initial_lr"] * factor(schedule.last_epoch))
    schedule.base_lrs = [group["initial_lr"] for group in own]
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
    now = optimizer.param_groups[0]
    changed = [f"{_SETTINGS.get(k, k)} {then[k]} -> {now[k]}" for k in own[0] if k in then and then[k] != now[k]]
    if changed and show:
        print(f"Resumed with the settings of the flags, not of the checkpoint: {', '.join(changed)}.", flush=True)


def load_saved_weights(model: PreTrainedModel, directory: str) -> None:
    """Load the weights of a save_pretrained directory into `model`.

    The Trainer's own loading compares names as they stand on disk. Those of InternVL and LLaVA differ from the module's:
    it would load not one tensor, warn, and go on from the weights the run began with. Raises ValueError for a missing tensor.
    """
    loaded: Any = type(model).from_pretrained(
        directory, config=model.config, dtype=model.dtype, output_loading_info=True
    )
    saved, info = loaded
    if info["missing_keys"]:
        raise ValueError(
            f"{directory}: {len(info['missing_keys'])} tensors are missing, such as {min(info['missing_keys'])}. Resume from another checkpoint."
        )
    # Where features come from a cache, the model has no tower and leaves its weights out.
    own = model.state_dict().keys()
    weights = {name: tensor for name, tensor in saved.state_dict().items() if name in own}
    # Modules that the stage has added (build_parts' `extend`) are none of the class's: `saved` lacks them.
    model.load_state_dict(weights | stored_weights(directory, own - weights.keys()))


def convert_to_universal(checkpoint: Path) -> None:
    """Write global_stepN_universal next to the shards, which a run of any world size can load. Raises ValueError when DeepSpeed cannot."""
    remove_universal(checkpoint)
    tag = (checkpoint / "latest").read_text().strip()
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    words = [
        "--inject_missing_state",
        "--input_folder",
        str(checkpoint / tag),
        "--output_folder",
        str(checkpoint / f"{tag}_universal"),
    ]
    followed, held = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CONVERTER, *words],
            check=False,
            env=env,
            stdin=followed,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
    finally:
        os.close(followed)
        os.close(held)
    if done.returncode:
        raise ValueError(
            f"{checkpoint}: DeepSpeed could not convert the shards for another number of processes: {done.stderr.strip().splitlines()[-1]}. "
            "Resume with the number of processes that complete.json names."
        )


def remove_universal(checkpoint: Path) -> None:
    for path in checkpoint.glob("global_step*_universal"):
        shutil.rmtree(path)
    (checkpoint / "latest_universal").unlink(missing_ok=True)


def _write_index(directory: Path) -> None:
    """model.safetensors.index.json over all weight files of `directory`, so that from_pretrained reads them as one model."""
    weight_map, total = {}, 0
    for path in sorted(directory.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            weight_map.update(dict.fromkeys(file.keys(), path.name))
        total += path.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _digest_of_weights(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_names(model: torch.nn.Module) -> str:
    return contract.names_digest({name: _count(p) for name, p in model.named_parameters() if p.requires_grad})


def _count(parameter: torch.Tensor) -> int:
    """Elements of a parameter, also of one that ZeRO-3 holds elsewhere."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
