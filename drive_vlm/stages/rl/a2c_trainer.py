"""The Trainer of A2C: one policy with a value head, sampled, scored and learned from once in every step."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer
from trl.models import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.models.value_head import NAME
from drive_vlm.sampling.local import end_tokens, left_padded
from drive_vlm.stages.engine.build import RunParts
from drive_vlm.stages.engine.trainer import DriveTrainerMixin, Loader, num_tiles
from drive_vlm.stages.rl.a2c_figures import Figures, completion_figures
from drive_vlm.stages.rl.a2c_flags import A2CFlags
from drive_vlm.stages.rl.actions import ActionMonitor
from drive_vlm.stages.rl.advantages import (
    Coefficients,
    advantages,
    explained_variance,
    loss_sums,
    whiten,
)
from drive_vlm.stages.rl.completions import Completion, Earning, score, text_of
from drive_vlm.stages.rl.policy import copy_adapter, frozen_copy
from drive_vlm.stages.rl.probes import PROBES, Probes
from drive_vlm.stages.rl.rollouts import Rollouts
from drive_vlm.stages.rl.samples_file import FILE, append_samples, sample_line
from drive_vlm.stages.rl.sampling import Draw, sample, uniforms
from drive_vlm.store.forms import part, read_object
from drive_vlm.store.keyed_lines import check_same

_STATE = "a2c_state.json"


@dataclasses.dataclass
class MicroBatch:
    """Some completions of a rollout as one forward pass takes them. Tensors are float32[N] over the tokens of those that count.

    Attributes:
        inputs: input_ids, labels and attention_mask int64[B, T], padded on the right as in SFT, and the vision tensors.
        completions: those of the rows.
        returns: G.
        drawn: log-probabilities of the tokens when they were drawn.
        reference: log-probabilities under the frozen start; None without a KL term.
        values, advantages: V and whitened A, from the step's first pass; None before it.
    """

    inputs: dict[str, Any]
    completions: list[Completion]
    returns: torch.Tensor
    drawn: torch.Tensor
    reference: torch.Tensor | None = None
    values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion that counts."""
        return [len(one.ids) for one in self.completions if one.counted]


class A2CTrainer(DriveTrainerMixin, Trainer):
    """Built from RunParts, Rollouts (rollouts.py), the stage's flags and the Trainer's own arguments.

    An optimizer step, all of it on one generation batch:

    1. `_prepare_inputs` of the first micro-batch calls `_rollout`: prompts and pictures, completions (sampling.py), rewards
       (completions.py), log-probabilities under the frozen start.
    2. Where the step has several micro-batches, a pass without gradients gives the values of all of them: advantages are
       whitened over the whole step. With one micro-batch the values are those of the pass that learns.
    3. `compute_loss` for each micro-batch: one forward pass gives log-probabilities, entropies and values.
    4. After the last one `_report` adds the figures up over the ranks, asks the alarms and writes samples.jsonl.

    No old log-probabilities, no ratio, no clipping: a rollout is used once.
    """

    loss_is_scaled_for_ga = True
    log_files = ("metrics.jsonl", FILE, PROBES)

    def __init__(
        self, parts: RunParts, rollouts: Rollouts, settings: A2CFlags, earning: Earning, **kwargs: Any
    ) -> None:
        self.rollouts, self.settings, self.earning = rollouts, settings, earning
        self.tower_memo = rollouts.memo
        policy = parts.family.model
        # What is sampled must be what learns: the same text, the same log-probability.
        disable_dropout_in_model(policy)
        trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
        # "adapter": the start is the model without its new adapter; "copy": a frozen copy of the adapter; "model": of the model.
        self._start = "none"
        if settings.kl_coef:
            adapted = hasattr(policy, "peft_config")
            self._start = ("adapter" if parts.flags.model.lora_rank else "copy") if adapted else "model"
        if self._start == "copy":
            copy_adapter(policy)
        self._trained, self._value_group = trained, -1
        self._restore_trained(policy)
        self.figures, self.actions = Figures(), ActionMonitor(settings.collapse_entropy)
        # A completion that holds the placeholder of a picture could not be read: there is no picture for it.
        placeholder = [] if parts.encoder.image_id is None else [parts.encoder.image_id]
        self._never = sorted({*placeholder, *(parts.family.base.generation_config.suppress_tokens or ())})
        self._micro_batches: list[MicroBatch] = []
        self._next, self._tokens, self._began = 0, 0, time.perf_counter()
        super().__init__(parts, **kwargs)
        self.add_callback(Probes(rollouts, self.out, self.heartbeat))
        # After the Trainer, which has moved the policy to its GPU: host memory never holds both.
        self.reference = self._ready(frozen_copy(parts, rollouts.memo)) if self._start == "model" else None

    def _ready(self, reference: torch.nn.Module) -> Any:
        """The frozen copy on its device, under DeepSpeed in an engine of its own."""
        disable_dropout_in_model(reference)
        if self.is_deepspeed_enabled:
            ready: Any = prepare_deepspeed(reference, self.accelerator)
        else:
            ready = self.accelerator.prepare_model(reference, evaluation_mode=True)
        # Not `return ready.eval()`: DeepSpeedEngine.eval (0.19) returns None.
        ready.eval()
        return ready

    def _restore_trained(self, policy: torch.nn.Module) -> None:
        """Restore requires_grad: peft (0.21) enables a whole adapter whenever it becomes active."""
        if hasattr(policy, "peft_config"):
            for name, weight in policy.named_parameters():
                weight.requires_grad_(name in self._trained)

    # optimizer

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One optimizer: the policy at --learning_rate, and as its last group the value head at --value_learning_rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decaying = set(self.get_decay_parameter_names(model))
            weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            head = [weight for name, weight in weights.items() if f".{NAME}." in f".{name}"]
            policy = {name: weight for name, weight in weights.items() if f".{NAME}." not in f".{name}"}
            groups: list[dict[str, Any]] = [
                {"params": [w for n, w in policy.items() if n in decaying], "weight_decay": self.args.weight_decay},
                {"params": [w for n, w in policy.items() if n not in decaying], "weight_decay": 0.0},
                {"params": head, "weight_decay": 0.0, "lr": self.settings.value_learning_rate},
            ]
            # DeepSpeed drops empty groups, and rates would then belong to the wrong ones.
            groups = [group for group in groups if group["params"]]
            self._value_group = len(groups) - 1 if head else -1
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            # Trainer.create_optimizer (transformers 5.23) takes groups from here.
            self.optimizer_cls_and_kwargs = cls, {**options, "params": groups}
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The same schedule for both; the policy's rate is 0 in the first --value_warmup_steps steps."""
        schedule: Any = super().create_scheduler(num_training_steps, optimizer)
        groups = schedule.optimizer.param_groups
        for i, group in enumerate(groups):
            if i != self._value_group:
                schedule.lr_lambdas[i] = _after(self.settings.value_warmup_steps, schedule.lr_lambdas[i])
            group["lr"] = group["initial_lr"] * schedule.lr_lambdas[i](schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]
        return schedule

    @property
    def _warms_up(self) -> bool:
        return self.state.global_step < self.settings.value_warmup_steps

    # rollouts

    def get_train_dataloader(self) -> DataLoader:
        """Row numbers of this rank, once for each micro-batch of the step that learns from them."""
        # With a generator of its own the loader draws nothing from the generators that a checkpoint holds.
        return Loader(
            self.train_dataset,
            batch_sampler=self.rollouts.batches,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer._prepare_inputs (transformers 5.23), for the tensors of the next micro-batch; the first one of a step samples."""
        if self._next == len(self._micro_batches):
            self._rollout(inputs["rows"])
        micro = self._micro_batches[self._next]
        self._next += 1
        self.sample_ids = [one.prompt.id for one in micro.completions]
        tokens = [len(one.prompt.input_ids) + len(one.ids) for one in micro.completions]
        # With a memo the tower has run already, once for each picture of the generation batch.
        tiles = 0 if self.rollouts.memo is not None else num_tiles(micro.inputs)
        self.count_batch(sum(tokens), sum(micro.lengths), tiles)
        return micro.inputs

    def _rollout(self, rows: Sequence[int]) -> None:
        """Sample this rank's share of a generation batch, score it, and cut it into the step's micro-batches."""
        # The pictures of the step before are not needed while this one is sampled.
        self._micro_batches, now = [], time.perf_counter()
        self.figures.add({"seconds/step": now - self._began})
        self._began = now
        table = self.rollouts.prompts.table
        self.heartbeat.beat("data", lambda: [table.sample(row, False).id for row in dict.fromkeys(rows)])
        prompts = self.rollouts.prompts.load(rows)
        waited = time.perf_counter() - now
        self.parts.throughput.waited += waited
        if self.rollouts.memo is not None:
            self.rollouts.memo.clear()
        self.heartbeat.beat("generation", list(dict.fromkeys(prompt.id for prompt in prompts)))
        completions = self._sample(prompts)
        sampled = time.perf_counter()
        self.heartbeat.beat("reward")
        tools = {"trainer_state": self.state, "log_metric": self.figures.log_metric}
        score(completions, self.rollouts.scorers, self.earning, self._tokenizer, **tools)
        scored = time.perf_counter()
        self.figures.add({"seconds/generation": sampled - now - waited, "seconds/reward": scored - sampled})
        self.heartbeat.beat("communication")
        gathered = (
            gather_object([one.counted for one in completions]),
            gather_object([len(one.ids) for one in completions]),
        )
        self._tokens = sum(length for counted, length in zip(*gathered, strict=True) if counted)
        size = self.args.per_device_train_batch_size
        self._micro_batches = [self._micro_batch(completions[i : i + size]) for i in range(0, len(completions), size)]
        self._next = 0
        self.heartbeat.beat("forward", [])
        if self._start != "none":
            with self._as_start() as network:
                for micro in self._micro_batches:
                    micro.reference = self._forward(network, micro).log_probs
        if len(self._micro_batches) > 1:
            for micro in self._micro_batches:
                micro.values = self._forward(self.model_wrapped, micro, value_gradient=False).state_values
            self._find_advantages()

    @property
    def _tokenizer(self) -> Any:
        return self.parts.family.tokenizer

    def _sample(self, prompts: Sequence[Any]) -> list[Completion]:
        """A completion of each prompt by the policy as it is."""
        family, args, settings = self.parts.family, self.args, self.settings
        pad = family.tokenizer.pad_token_id
        padded = left_padded([prompt.features for prompt in prompts], pad, self.rollouts.take_vision)
        inputs = {name: self._prepare_input(tensor) for name, tensor in padded.items()}
        first, everyone = args.process_index * len(prompts), args.world_size * len(prompts)
        numbers = uniforms(
            self.rollouts.facts["seed"], self.state.global_step, everyone, settings.max_completion_length
        )
        options: Any = args.gradient_checkpointing_kwargs
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=options
        ) as network:
            ends = end_tokens(family.base, family.tokenizer)
            mine = numbers[first : first + len(prompts)].to(args.device)
            draw = Draw(mine, settings.temperature, self._never)
            ids, log_probs = sample(network, family.base, inputs, draw, settings.max_completion_length, ends, pad)
        return [
            Completion(prompt, said, drawn, said[-1] in ends, text_of(family.tokenizer, said))
            for prompt, said, drawn in zip(prompts, ids, log_probs, strict=True)
        ]

    @property
    def _distribution(self) -> dict[str, Any]:
        """What a forward pass is asked for: log-probabilities of the distribution that is sampled from."""
        return {"token_log_probs": True, "temperature": self.settings.temperature, "never": self._never}

    def _micro_batch(self, completions: list[Completion]) -> MicroBatch:
        """The rows that SFT would make of prompt and completion; those that do not count have no labels."""
        rows = [
            {
                "input_ids": np.array([*one.prompt.input_ids, *one.ids]),
                "labels": np.array(
                    [IGNORE_INDEX] * len(one.prompt.input_ids)
                    + (one.ids if one.counted else [IGNORE_INDEX] * len(one.ids))
                ),
                "vision": one.prompt.vision,
                "sample_id": one.prompt.id,
            }
            for one in completions
        ]
        batch = self.parts.collator([[row] for row in rows])
        inputs = {name: self._prepare_input(value) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        counted = [one for one in completions if one.counted]
        columns = ([x for one in counted for x in one.returns], [x for one in counted for x in one.log_probs])
        wanted, drawn = (torch.tensor(column, device=self.args.device) for column in columns)
        return MicroBatch(inputs, completions, wanted, drawn)

    def _forward(self, network: Any, micro: MicroBatch, **options: Any) -> Any:
        """Log-probabilities (and values) of a micro-batch, without gradients."""
        with torch.no_grad():
            return network(**micro.inputs, **self._distribution, **options)

    @contextlib.contextmanager
    def _as_start(self) -> Iterator[Any]:
        """The network with the weights that the run began with."""
        if self.reference is not None:
            yield self.reference
            return
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        with use_adapter(policy, "ref" if self._start == "copy" else None):
            yield self.model_wrapped
        self._restore_trained(policy)

    def _find_advantages(self) -> None:
        """A of every token of the step, from the values of its micro-batches, whitened over all ranks."""
        found: list[float] = []
        for micro in self._micro_batches:
            assert micro.values is not None, "a pass has given them"
            counted = [one for one in micro.completions if one.counted]
            for one, values in zip(counted, micro.values.split(micro.lengths), strict=True):
                found += advantages(one.gains, values.tolist(), self.settings.gamma, self.settings.gae_lambda)
        white = whiten(torch.tensor(found, device=self.args.device), add_up)
        parts = white.split([sum(micro.lengths) for micro in self._micro_batches])
        for micro, part_of_it in zip(self._micro_batches, parts, strict=True):
            micro.advantages = part_of_it

    # learning

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss of the micro-batch that `_prepare_inputs` gave: sums over its tokens by the number of those of the step."""
        settings, micro = self.settings, self._micro_batches[self._next - 1]
        # While only the head learns, it may not move the body.
        gradient = not settings.value_detach and not self._warms_up
        output: Any = model(**inputs, **self._distribution, value_gradient=gradient)
        if micro.advantages is None:
            micro.values = output.state_values.detach()
            self._find_advantages()
        assert micro.advantages is not None and micro.values is not None, "found above, or before the step"
        entropies = output.entropies if settings.entropy_coef else output.entropies.detach()
        sums = loss_sums(
            output.log_probs, entropies, output.state_values, micro.advantages, micro.returns, micro.reference
        )
        self.figures.sum_up(sums, output.log_probs.detach() - micro.drawn)
        if self._next == len(self._micro_batches):
            self._report()
        weights = Coefficients(float(not self._warms_up), settings.value_coef, settings.kl_coef, settings.entropy_coef)
        self.heartbeat.beat("backward")
        # DDP and DeepSpeed average gradients over the ranks.
        return sums.total(weights) / max(self._tokens, 1) * self.args.world_size

    # figures

    def _report(self) -> None:
        """What the step was like, over all ranks: alike on all of them."""
        micros = self._micro_batches
        mine = [one for micro in micros for one in micro.completions]
        wanted, values = (torch.cat([getattr(micro, name) for micro in micros]) for name in ("returns", "values"))
        kl = self.figures.close_step(max(self._tokens, 1), explained_variance(wanted, values, add_up), add_up)
        assert self.optimizer is not None, "training has one"
        rate: Any = self.optimizer.param_groups[self._value_group]["lr"] if self._value_group >= 0 else 0.0
        self.figures.add({"value_learning_rate": float(rate)})
        everyone = gather_object([completion_figures(mine, self.figures.take_logged())])
        found, observed, answers = self.figures.of_completions(everyone, self.settings.num_generations)
        self.figures.add(found)
        if observed is not None:
            self.figures.add(
                self.rollouts.alarms.observe(**observed, kl=kl if self._start != "none" else None, logged=found)
            )
        self.figures.add(self.actions.observe(answers))
        steps = self.rollouts.samples.sample_steps
        if steps and self.state.global_step % steps == 0:
            self._write_samples(mine, values)

    def _write_samples(self, completions: list[Completion], values: torch.Tensor) -> None:
        """Gathers the lines on all ranks, writes them on the main one. `values float32[N]` of the tokens that count."""
        advantage = torch.cat([cast("torch.Tensor", micro.advantages) for micro in self._micro_batches]).tolist()
        limit = self.rollouts.samples.sample_limit or self.rollouts.facts["generation_batch_size"]
        limit = max(limit // self.settings.num_generations, 1) * self.settings.num_generations
        first, at, each, lines = self.args.process_index * len(completions), 0, values.tolist(), []
        for i, one in enumerate(completions):
            part_of_it = slice(at, at + len(one.ids)) if one.counted else slice(0, 0)
            at = part_of_it.stop if one.counted else at
            if first + i < limit:
                lines.append(self._line(one, each[part_of_it], advantage[part_of_it]))
        lines = gather_object(lines)
        if self.args.should_save:
            append_samples(self.out / FILE, lines)

    def _line(self, one: Completion, values: list[float], advantage: list[float]) -> dict[str, Any]:
        line = sample_line(
            self.state.global_step + 1,
            one.prompt.id,
            one.prompt.text,
            one.text,
            one.prompt.columns["reference"],
            one.rewards,
            one.details,
            sum(advantage) / max(len(advantage), 1),
            len(one.ids),
            not one.ended,
        )
        tokens = self._tokenizer.convert_ids_to_tokens(one.ids)
        numbers = {"r": one.gains, "returns": one.returns, "values": values, "advantages": advantage}
        rounded = {name: [round(number, 6) for number in found] for name, found in numbers.items()}
        return line | {"reward": round(one.reward, 6), "weighted": one.terms, "tokens": tokens, **rounded}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the steps since the last log."""
        if "loss" in logs:
            logs.update(self.figures.take())
        super().log(logs, start_time)

    # checkpoints

    def check_resume(self) -> None:
        """Also refuses other prompts, batches, rewards or another start (ValueError), and takes over alarms and actions."""
        super().check_resume()
        if self.parts.resume is None:
            return
        checkpoint = self.parts.resume.checkpoint
        path, way_out = checkpoint / _STATE, "Resume from another checkpoint."
        state = read_object(path)
        state = {name: part(state, name, dict, path, way_out) for name in ("facts", "alarms", "actions")}
        problem = f"{checkpoint} was saved with other settings, so the run would not go on where it stopped"
        way_out = "Resume with the same data, --model and flags, or start again in another --output_dir."
        check_same(problem, state["facts"], self.rollouts.facts, way_out)
        self.rollouts.alarms.load(state["alarms"])
        self.actions.load(state["actions"])

    def save_data_state(self, directory: Path) -> None:
        super().save_data_state(directory)
        if self.args.should_save:
            state = {
                "step": self.state.global_step,
                "facts": self.rollouts.facts,
                "alarms": self.rollouts.alarms.state(),
                "actions": self.actions.state(),
            }
            (directory / _STATE).write_text(json.dumps(state, indent=2) + "\n")


def add_up(sums: torch.Tensor) -> torch.Tensor:
    """`sums` over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def _after(steps: int, schedule: Any) -> Any:
    """A schedule's factor, 0 in the first steps."""
    return lambda step: schedule(step) if step >= steps else 0.0


def rows_of(items: list[int]) -> dict[str, list[int]]:
    """Row numbers as a batch; `data_collator` of this Trainer."""
    return {"rows": items}
