"""The Trainer of GRPO: TRL's loss, groups and generation, on our prompts, pictures, rewards and checkpoints."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import trl
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import StoppingCriteria, StoppingCriteriaList, TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from drive_vlm.launch import stop
from drive_vlm.stages.engine.build import RunParts
from drive_vlm.stages.engine.faults import StopOnRequest
from drive_vlm.stages.engine.trainer import DriveTrainerMixin, Loader, num_tiles
from drive_vlm.stages.rl.policy import check_copy, load_reference, without_own_reference
from drive_vlm.stages.rl.probes import PROBES, Probes
from drive_vlm.stages.rl.prompts import Prompt, same_keys
from drive_vlm.stages.rl.rollouts import Rollouts
from drive_vlm.stages.rl.samples_file import FILE, append_samples, sample_line
from drive_vlm.store.forms import part, read_object
from drive_vlm.store.keyed_lines import check_same

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE = "grpo_state.json"
# Seconds between two looks for a request while answers are generated.
_LOOK = 0.5


class GRPOTrainer(DriveTrainerMixin, trl.GRPOTrainer):
    """Built from RunParts, Rollouts (rollouts.py) and the Trainer's own arguments.

    TRL renders prompts with the processor, which would tile pictures in its own way; here prompt tokens and vision tensors
    are those of the data path, so that GRPO reads what SFT trained. The vision tensors of a generation batch stay on the
    CPU, one copy for the generations of a prompt, and join each pass as it needs them.

    A generation batch, in the order in which TRL calls our methods:

    1. `_prepare_inputs` asks for a new batch when the old one is used up (`steps_per_generation * num_iterations` times).
    2. `_generate_and_score_completions` loads prompts and pictures; `_tokenize_prompts` hands TRL tokens and tensors.
    3. TRL generates, on all ranks alike; under ZeRO-3 the weights are gathered for it. A request to stop ends it (`_generate`).
    4. `_get_per_token_logps_and_entropies` computes log-probabilities under policy and reference, pictures included.
    5. `_calculate_rewards` calls the scorers; TRL turns rewards into advantages within each group.
    6. `_observe` (alarms) and `_write_samples` (samples.jsonl) look at the result.
    7. For each micro-batch: `_prepare_inputs` counts it, `_compute_loss` gives TRL's loss with the batch's own pictures.
    """

    # Any: the Trainer's own type has none of the flags of GRPOConfig.
    args: Any
    num_generations: int
    log_files = ("metrics.jsonl", FILE, PROBES)

    def __init__(self, parts: RunParts, rollouts: Rollouts, **kwargs: Any) -> None:
        model, args = parts.family.model, kwargs["args"]
        self.rollouts = rollouts
        self.tower_memo = rollouts.memo
        self.generations = 0
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._rows: list[Prompt] = []
        self._pictures: list[dict[str, Any]] = []
        self._scored: dict[str, Any] = {}
        self._kl: float | None = None
        with without_own_reference(model, args):
            super().__init__(parts, **kwargs)
        self._restore_trained()
        # TRL (1.16) leaves out the placeholder of pictures alone. With another that the family never says, such as that of videos, a
        # completion could not be read again.
        if not args.use_vllm:
            never = {*(self.generation_config.suppress_tokens or ()), *(model.generation_config.suppress_tokens or ())}
            self.generation_config.suppress_tokens = sorted(never) or None
        self.add_callback(SavesAtBoundaries(self.may_save))
        self.add_callback(Probes(rollouts, self.out, self.heartbeat))
        self.beta = args.beta
        # After the Trainer, which has moved the policy to its GPU: host memory never holds both.
        reference = load_reference(parts, args, rollouts.memo)
        if reference is not None:
            # Any: TRL declares a PreTrainedModel, though its own constructor puts an engine there as well.
            ready: Any = self._ready(reference)
            self.ref_model = ready
        elif self.beta:
            check_copy(self.model)

    def _ready(self, reference: torch.nn.Module) -> torch.nn.Module:
        """The reference as GRPOTrainer's constructor (trl 1.16) leaves one of its own: the same dropout, padding token and
        head as the policy, then in an engine of its own, in evaluation mode."""
        args, reference = self.args, cast("PreTrainedModel", reference)
        if args.disable_dropout:
            disable_dropout_in_model(reference)
        policy_text, text = self.model.config.get_text_config(), reference.config.get_text_config()
        text.pad_token_id = policy_text.pad_token_id
        add_fused_lm_head(reference, temperature=args.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
        if self.is_deepspeed_enabled:
            ready = prepare_deepspeed(reference, self.accelerator)
        else:
            ready = self.accelerator.prepare_model(reference, evaluation_mode=True)
        # Not `return ready.eval()`: DeepSpeedEngine.eval (0.19) returns None.
        ready.eval()
        return ready

    def _restore_trained(self) -> None:
        """Restore requires_grad: peft (0.21) enables a whole adapter whenever it becomes active."""
        if hasattr(self.model, "peft_config"):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in self._trained)

    # generation batches

    def get_train_dataloader(self) -> DataLoader:
        """Replaces GRPOTrainer.get_train_dataloader (trl 1.16), whose sampler drops the rows that do not fill a batch."""
        # With a generator of its own the loader draws nothing from the generator that completions are sampled with.
        return Loader(
            self.train_dataset,
            batch_sampler=self.rollouts.batches,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """GRPOTrainer._generate_and_score_completions (trl 1.16), with our prompts before it and our records after it."""
        numbers = [one["row"] for one in inputs]
        table = self.rollouts.prompts.table
        self.heartbeat.beat("data", lambda: [table.sample(row, False).id for row in dict.fromkeys(numbers)])
        started = time.perf_counter()
        self._rows = self.rollouts.prompts.load(numbers)
        self._pictures = [row.vision for row in self._rows]
        self.parts.throughput.waited += time.perf_counter() - started
        if self.rollouts.memo is not None:
            self.rollouts.memo.clear()
        self.heartbeat.beat("generation", list(dict.fromkeys(row.id for row in self._rows)))
        before = {name: len(values) for name, values in self._metrics["train"].items()}
        output = super()._generate_and_score_completions([{"prompt": row.messages} for row in self._rows])
        self._restore_trained()
        # Of this batch alone: TRL keeps the numbers of all batches until the next log.
        self._observe({n: values[-1] for n, values in self._metrics["train"].items() if len(values) > before.get(n, 0)})
        # See _calculate_rewards.
        output["advantages"] = output["advantages"].float()
        if self.rollouts.samples.sample_steps and self.generations % self.rollouts.samples.sample_steps == 0:
            self._write_samples(output["advantages"].tolist())
        self.generations += 1
        lengths = zip(output["prompt_mask"].sum(1).tolist(), self._scored["lengths"], strict=True)
        return output | {
            "sample_ids": [row.id for row in self._rows],
            "pictures": self._pictures,
            "lengths": list(lengths),
        }

    def _generate(self, prompts: list[Any]) -> Any:
        """GRPOTrainer._generate (trl 1.16). Where a request may end the step, it ends the answers at the next token, then the
        step on all ranks; elsewhere it waits for the end of the step."""
        requests = next((one for one in self.callback_handler.callbacks if isinstance(one, StopOnRequest)), None)
        if requests is None or not requests.may_leave_generation:
            return super()._generate(prompts)
        seen, metrics, by_request = self.state.num_input_tokens_seen, self._metrics["train"], EndsByRequest()
        before = {name: list(values) for name, values in metrics.items()}
        with _stopping(self.model, by_request):
            generated = super()._generate(prompts)
        self.heartbeat.beat("communication")
        try:
            requests.after_generation(self.args, self.control, by_request.asked)
        except stop.StopRequested:
            # The checkpoint, and the last line of the log, are those of the step before.
            self.state.num_input_tokens_seen = seen
            metrics.clear()
            metrics.update(before)
            raise
        self.heartbeat.beat("generation")
        return generated

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokens of our own data path, and the vision tensors of all rows; TRL itself then sees no pictures."""
        return [row.input_ids for row in self._rows], None, self.rollouts.take_vision(self._pictures)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """float64[N over all ranks, rewards], NaN where a completion leaves the step. The rewards get the columns of our rows."""
        self.heartbeat.beat("reward")
        started = time.perf_counter()
        columns = same_keys([row.columns for row in self._rows])
        rewards = super()._calculate_rewards(columns, prompts, completions, completion_ids_list)
        self._scored = {
            "rewards": rewards,
            "texts": [message[0]["content"] for message in completions],
            "lengths": [len(ids) for ids in completion_ids_list],
            "truncated": [ids[-1] not in (*self.eos_token_ids, self._tokenizer.pad_token_id) for ids in completion_ids_list],
            "terms": [scorer.terms(len(completions)) for scorer in self.rollouts.scorers],
        }  # fmt: skip
        self._metrics["train"]["reward_seconds"].append(time.perf_counter() - started)
        # TRL (1.16) leaves out a completion whose rewards are all unknown; next to other rewards it would count None as 0.
        unknown = torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
        for i, scorer in enumerate(self.rollouts.scorers):
            missing = rewards[:, i].isnan() & scorer.must_score
            if scorer.whole_group:
                # The groups stand one after another, over all ranks.
                groups = missing.view(-1, self.num_generations).any(dim=1)
                self._metrics["train"][f"{scorer.__name__}/groups_left_out"].append(groups.sum().item())
                missing = groups.repeat_interleave(self.num_generations)
            unknown |= missing
        self._metrics["train"]["unscored"].append(unknown.float().mean().item())
        # In float32 the mean of eight equal rewards of .7 is not .7: TRL (1.16) would give such a group advantages of 6e-4 and not
        # count it in frac_reward_zero_std.
        return rewards.masked_fill(unknown.unsqueeze(1), math.nan).double()

    def _observe(self, logged: dict[str, float]) -> None:
        """Let the alarms see the generation batch that was just scored; TRL has gathered its numbers, `logged`, over all ranks."""
        metrics = self._metrics["train"]
        observed = self.rollouts.alarms.observe(
            zero_variance=metrics["frac_reward_zero_std"][-1],
            all_zero=not bool(self._scored["rewards"].nan_to_num().any()),
            length=metrics["completions/mean_length"][-1],
            truncated=metrics["completions/clipped_ratio"][-1],
            kl=self._kl,
            logged=logged,
        )
        self._kl = None
        for name, value in observed.items():
            metrics[name].append(value)

    def _write_samples(self, advantages: list[float]) -> None:
        """Gathers the lines on all ranks, writes them on the main one."""
        limit = self.rollouts.samples.sample_limit or self.args.generation_batch_size
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
                {
                    s.__name__: None if math.isnan(r) else r
                    for s, r in zip(self.rollouts.scorers, rewards[i], strict=True)
                },
                {s.__name__: t[i] for s, t in zip(self.rollouts.scorers, self._scored["terms"], strict=True) if t},
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

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """GRPOTrainer._prepare_inputs (trl 1.16), then the count of the micro-batch that it has drawn."""
        inputs = super()._prepare_inputs(generation_batch)
        self.sample_ids = inputs["sample_ids"]
        completions = sum(completion for _, completion in inputs["lengths"])
        # With a memo the tower has run already, once for each picture of the generation batch.
        tiles = 0 if self.rollouts.memo is not None else sum(map(num_tiles, inputs["pictures"]))
        self.count_batch(sum(prompt for prompt, _ in inputs["lengths"]) + completions, completions, tiles)
        return inputs

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """GRPOTrainer._compute_loss (trl 1.16), with the pictures of this micro-batch."""
        self._pictures = inputs["pictures"]
        loss = super()._compute_loss(model, inputs)
        if self.beta:
            self._kl = max(self._metrics["train"]["kl"][-1], self._kl or 0.0)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's own (1.16), `batch_size` rows at a time, each time with the pictures of these rows."""
        size = batch_size or len(input_ids)
        parts: list[Any] = []
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            vision = {k: self._prepare_input(v) for k, v in self.rollouts.take_vision(self._pictures[part]).items()}
            with_pictures = functools.partial(model, **(vision or self.rollouts.without_pictures))
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

    def check_resume(self) -> None:
        """Also refuses other prompts, batches, rewards or another reference policy (ValueError), and takes over the alarms."""
        super().check_resume()
        if self.parts.resume is None:
            return
        checkpoint = self.parts.resume.checkpoint
        path = checkpoint / _STATE
        state = read_object(path)
        kinds = {"facts": dict, "generations": int, "alarms": dict, "kl": float | None}
        way_out = "Resume from another checkpoint."
        state = {name: part(state, name, kind, path, way_out) for name, kind in kinds.items()}
        problem = f"{checkpoint} was saved with other settings, so the run would not go on where it stopped"
        way_out = "Resume with the same data, --model and batch flags, or start again in another --output_dir."
        check_same(problem, state["facts"], self.rollouts.facts, way_out)
        self.generations = state["generations"]
        self.rollouts.alarms.load(state["alarms"])
        self._kl = state["kl"]

    def save_data_state(self, directory: Path) -> None:
        super().save_data_state(directory)
        if not self.args.should_save:
            return
        state = {
            "step": self.state.global_step,
            "generations": self.generations,
            "facts": self.rollouts.facts,
            "alarms": self.rollouts.alarms.state(),
            "kl": self._kl,
        }
        (directory / _STATE).write_text(json.dumps(state, indent=2) + "\n")
        # TRL 1.16 looks for it in this file when it resumes.
        if self.use_adaptive_entropy:
            entropy = {"entropy_coef": self.entropy_coef, "last_world_entropy": self._last_world_entropy}
            (directory / "entropy_ctrl_state.json").write_text(json.dumps(entropy))


class EndsByRequest(StoppingCriteria):
    """Ends all answers of a batch once this process is asked to stop. Each rank looks for itself: they have unequally many
    tokens to generate, so they cannot agree before the end."""

    def __init__(self) -> None:
        self.asked: stop.Request | None = None
        self._looked = 0.0

    # Any: a tensor of torch is no BoolTensor to its type checker.
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        """bool[B]: which of the answers `input_ids int64[B, T]` end here."""
        # A token may take less time than a look at a file on a server.
        if self.asked is None and time.monotonic() - self._looked > _LOOK:
            self.asked = stop.request(new=True, any_rank=True)
            self._looked = time.monotonic()
        return torch.full((len(input_ids),), self.asked is not None, device=input_ids.device)


@contextlib.contextmanager
def _stopping(model: Any, criterion: StoppingCriteria) -> Iterator[None]:
    """A patch of the model's `generate` inside: TRL 1.16 calls it without stopping criteria."""
    model.generate = functools.partial(model.generate, stopping_criteria=StoppingCriteriaList([criterion]))
    try:
        yield
    finally:
        # The method of the class is there again.
        del model.generate


class SavesAtBoundaries(TrainerCallback):
    """A checkpoint that is due between two generation batches is written when the second one begins, and an evaluation made: the
    score of a checkpoint is that of its weights."""

    def __init__(self, may_save: Callable[[], bool]) -> None:
        self._may_save, self._due, self._evaluate = may_save, False, False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._due |= control.should_save
        control.should_save = self._due and self._may_save()
        if control.should_save:
            self._due = False
        self._evaluate |= control.should_evaluate
        # The run ends here, wherever it stands.
        control.should_evaluate = self._evaluate and (self._may_save() or control.should_training_stop)
        if control.should_evaluate:
            self._evaluate = False

    # --max_steps ends an epoch wherever it stands.
    on_epoch_end = on_step_end
