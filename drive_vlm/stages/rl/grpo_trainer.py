"""The Trainer of GRPO: TRL's loss, groups and generation, on our prompts, pictures, rewards and checkpoints."""

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers.trainer_callback import TrainerCallback

from drive_vlm.launch.checkpoint import cut_metrics
from drive_vlm.sampling.tower_memo import TowerMemo
from drive_vlm.stages.engine.trainer import DriveTrainerMixin, Loader
from drive_vlm.stages.rl.alarms import Alarms
from drive_vlm.stages.rl.prompts import Prompt, PromptBatches, Prompts, describe_difference, same_keys
from drive_vlm.stages.rl.samples_file import FILE, SampleConfig, append_samples, sample_line

_STATE = "grpo_state.json"


class GRPOTrainer(DriveTrainerMixin, trl.GRPOTrainer):
    """After construction a stage sets, beside what the mixin asks for, `batches`, `prompts`, `take_vision` (vision
    tensors of rows -> those of a batch), `without_pictures` (what a pass gets in a batch without any), `scorers`, `alarms`,
    `sampling`, `memo` and `facts` (what must be equal in a resumed run).

    TRL renders prompts with the processor, which would tile pictures in its own way; here prompt tokens and vision tensors
    are those of the data path, so that GRPO reads what SFT trained. The vision tensors of a generation batch stay on the
    CPU, one copy for the generations of a prompt, and join each pass as it needs them.
    """

    args: Any  # trl.GRPOConfig
    num_generations: int
    train_dataset: Any
    batches: PromptBatches
    prompts: Prompts
    take_vision: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    scorers: Sequence[Any]
    alarms: Alarms
    sampling: SampleConfig
    memo: TowerMemo | None = None
    without_pictures: dict[str, Any]
    facts: dict[str, Any]
    generations = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        super().__init__(*args, **kwargs)
        self._keep_trained()
        self.add_callback(SavesAtBoundaries(self.may_save))
        self._rows: list[Prompt] = []
        self._pictures: list[dict[str, Any]] = []
        self._scored: dict[str, Any] = {}
        self._kl: float | None = None

    def _keep_trained(self) -> None:
        """What trains stays what it was: peft turns on the whole of an adapter whenever one becomes active."""
        if hasattr(self.model, "peft_config"):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in self._trained)

    # generation batches

    def get_train_dataloader(self) -> DataLoader:
        # With a generator of its own the loader draws nothing from the generator that completions are sampled with.
        return Loader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [one["row"] for one in inputs]
        self.heartbeat.beat(
            "data", lambda: [self.prompts.table.sample(row, False).id for row in dict.fromkeys(numbers)]
        )
        started = time.perf_counter()
        self._rows = self.prompts.load(numbers)
        self._pictures = [row.vision for row in self._rows]
        self.throughput.waited += time.perf_counter() - started
        if self.memo is not None:
            self.memo.clear()
        self.heartbeat.beat("generation", list(dict.fromkeys(row.id for row in self._rows)))
        output = super()._generate_and_score_completions([{"prompt": row.messages} for row in self._rows])
        self._keep_trained()
        self._observe()
        if self.sampling.sample_steps and self.generations % self.sampling.sample_steps == 0:
            self._write_samples(output["advantages"].tolist())
        self.generations += 1
        lengths = zip(output["prompt_mask"].sum(1).tolist(), self._scored["lengths"], strict=True)
        return output | {
            "sample_ids": [row.id for row in self._rows],
            "pictures": self._pictures,
            "lengths": list(lengths),
        }

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokens of our own data path, and the vision tensors of all rows; TRL itself then sees no pictures."""
        return [row.input_ids for row in self._rows], None, self.take_vision(self._pictures)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """float[N over all ranks, rewards]. The rewards get the columns of our rows."""
        self.heartbeat.beat("reward")
        started = time.perf_counter()
        columns = same_keys([row.columns for row in self._rows])
        rewards = super()._calculate_rewards(columns, prompts, completions, completion_ids_list)
        self._scored = {
            "rewards": rewards,
            "texts": [message[0]["content"] for message in completions],
            "lengths": [len(ids) for ids in completion_ids_list],
            "truncated": [ids[-1] not in (*self.eos_token_ids, self._tokenizer.pad_token_id) for ids in completion_ids_list],
            "terms": [scorer.terms(len(completions)) for scorer in self.scorers],
        }  # fmt: skip
        self._metrics["train"]["reward_seconds"].append(time.perf_counter() - started)
        return rewards

    def _observe(self) -> None:
        """Let the alarms see the generation batch that was just scored; TRL has gathered its numbers over all ranks."""
        metrics = self._metrics["train"]
        observed = self.alarms.observe(
            zero_variance=metrics["frac_reward_zero_std"][-1],
            all_zero=not bool(self._scored["rewards"].nan_to_num().any()),
            length=metrics["completions/mean_length"][-1],
            truncated=metrics["completions/clipped_ratio"][-1],
            kl=self._kl,
        )
        self._kl = None
        for name, value in observed.items():
            metrics[name].append(value)

    def _write_samples(self, advantages: list[float]) -> None:
        """Gathers the lines on all ranks, writes them on the main one."""
        limit = self.sampling.sample_limit or self.args.generation_batch_size
        limit = max(limit // self.num_generations, 1) * self.num_generations
        first = self.args.process_index * len(self._rows)
        rewards = self._scored["rewards"][first : first + len(self._rows)].tolist()
        lines = [
            sample_line(
                self.state.global_step + 1,
                row.id,
                row.text,
                self._scored["texts"][i],
                row.columns["reference"],
                {s.__name__: None if math.isnan(r) else r for s, r in zip(self.scorers, rewards[i], strict=True)},
                {s.__name__: t[i] for s, t in zip(self.scorers, self._scored["terms"], strict=True) if t},
                advantages[i],
                self._scored["lengths"][i],
                self._scored["truncated"][i],
            )
            for i, row in enumerate(self._rows)
            if first + i < limit
        ]
        lines = gather_object(lines)
        if self.args.should_save:
            append_samples(self.out / FILE, lines)

    # micro-batches

    def begin_batch(self, inputs: Any) -> None:
        """The rows of a micro-batch are known once they are drawn from the generation batch (_prepare_inputs)."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        self.sample_ids = inputs["sample_ids"]
        tokens = sum(prompt + completion for prompt, completion in inputs["lengths"])
        tiles = 0 if self.memo is not None else sum(map(_tiles, inputs["pictures"]))
        self._step_flops = self.flops(tokens, sum(completion for _, completion in inputs["lengths"]), tiles)
        self.throughput.add(len(self.sample_ids), tokens, self._step_flops)
        self.heartbeat.beat("forward", self.sample_ids)
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._pictures = inputs["pictures"]
        loss = super()._compute_loss(model, inputs)
        if self.beta:
            self._kl = max(self._metrics["train"]["kl"][-1], self._kl or 0.0)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's own, `batch_size` rows at a time, each time with the pictures of these rows."""
        size = batch_size or len(input_ids)
        parts: list[Any] = []
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            vision = {k: self._prepare_input(v) for k, v in self.take_vision(self._pictures[part]).items()}
            with_pictures = functools.partial(model, **(vision or self.without_pictures))
            parts.append(
                super()._get_per_token_logps_and_entropies(
                    with_pictures, input_ids[part], attention_mask[part], logits_to_keep, **options
                )
            )
        logps, entropies, aux = (list(column) for column in zip(*parts, strict=True))
        return (
            torch.cat(logps),
            torch.cat(entropies) if entropies[0] is not None else None,
            torch.stack(aux).mean() if aux[0] is not None else None,
        )

    # checkpoints

    def may_save(self) -> bool:
        """Whether all completions of the generation batch are used up: TRL's buffer is in no checkpoint."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    def prepare_start(self) -> None:
        """Also refuses other prompts, batches or another reference policy (ValueError), and cuts samples.jsonl."""
        super().prepare_start()
        step = -1
        if self.args.resume_from_checkpoint:
            checkpoint = Path(self.args.resume_from_checkpoint)
            state = json.loads((checkpoint / _STATE).read_text())
            step = state["step"]
            differs = describe_difference(state["facts"], self.facts)
            if differs:
                raise ValueError(
                    f"{checkpoint} was saved with {differs}: the run would not go on where it stopped. Resume with the same data, "
                    "--model and batch flags, or start anew in another --output_dir."
                )
            self.generations = state["generations"]
            self.alarms.load(state["alarms"])
            self._kl = state["kl"]
        if self.args.should_save:
            cut_metrics(self.out / FILE, step)

    def save_data_state(self, directory: Path) -> None:
        super().save_data_state(directory)
        if not self.args.should_save:
            return
        state = {
            "step": self.state.global_step,
            "generations": self.generations,
            "facts": self.facts,
            "alarms": self.alarms.state(),
            "kl": self._kl,
        }
        (directory / _STATE).write_text(json.dumps(state, indent=2) + "\n")
        if self.use_adaptive_entropy:  # where TRL looks for it
            entropy = {"entropy_coef": self.entropy_coef, "last_world_entropy": self._last_world_entropy}
            (directory / "entropy_ctrl_state.json").write_text(json.dumps(entropy))


def _tiles(vision: dict[str, Any]) -> int:
    pictures = next((vision[name] for name in ("pixel_values", "vision_features") if name in vision), None)
    return 0 if pictures is None else len(pictures)


class SavesAtBoundaries(TrainerCallback):
    """A checkpoint that is due between two generation batches is written when the second one begins."""

    def __init__(self, may_save: Callable[[], bool]) -> None:
        self._may_save, self._due = may_save, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._due |= control.should_save
        control.should_save = self._due and self._may_save()
        if control.should_save:
            self._due = False

    on_epoch_end = on_step_end  # --max_steps ends an epoch wherever it stands
