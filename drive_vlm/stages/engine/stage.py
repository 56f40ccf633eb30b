"""What a line of the table of stages (drive_vlm/stages/__init__.py) says, and the flags that a stage was given. No torch."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from drive_vlm.config import DataConfig, ModelConfig, RunConfig
from drive_vlm.stages.engine.score_flags import ScoreFlags
from drive_vlm.stages.engine.training_flags import check_training_flags

Config = TypeVar("Config")
# What a line of --data is to a stage: a row to learn, a row with a chosen and a rejected answer, or a prompt to answer.
Kind = Literal["rows", "pairs", "prompts"]
SHARED_CONFIGS = (
    "drive_vlm.config:ModelConfig",
    "drive_vlm.config:DataConfig",
    "drive_vlm.stages.engine.score_flags:ScoreFlags",
    "drive_vlm.config:RunConfig",
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A line of the table. Whatever stands as "module:name" is imported only when it is asked for (`load`).

    Attributes:
        prepare: "module:function", the entry point: StageFlags -> (trainer, facts for run.json). The module imports no
            torch at its top. Its docstring and its EXAMPLES are the stage's --help; `{stage}` in EXAMPLES becomes the name.
        help: one line in the list of commands.
        kind: what a line of --data is to the stage. The plan counts tokens by it.
        training_arguments: full name of the transformers.TrainingArguments class whose flags the stage takes.
        configs: "module:Class" of the dataclasses of its own flags, in the order in which --help shows them.
        more_configs: "module:function", words -> more such dataclasses, where the words decide (those of chosen rewards).
        check: "module:function", (StageFlags, number of processes) -> flags of `training_arguments` with the stage's own
            defaults. Raises ValueError for what the stage refuses. Needs no torch, so that a plan refuses the same. Without
            it the flags stay as they were given.
        generation: "module:function" of a stage of prompts, (StageFlags, number of processes) -> GenerationBatch
            (rl/generation.py), for the plan. Its `training` has every flag, with the defaults. Needs no torch.
    """

    prepare: str
    help: str
    kind: Kind
    training_arguments: str = "transformers.TrainingArguments"
    configs: tuple[str, ...] = SHARED_CONFIGS
    more_configs: str | None = None
    check: str | None = None
    generation: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "prompts") != bool(self.generation):
            raise ValueError(f"{self.prepare}: a stage of prompts names its `generation`, and no other does.")

    def config_classes(self, words: Sequence[str]) -> list[type]:
        """The dataclasses of all its own flags. Raises ValueError where `words` choose something that is not there."""
        return [*map(load, self.configs), *(load(self.more_configs)(words) if self.more_configs else ())]

    @property
    def description(self) -> str:
        """Docstring of its module."""
        return self._module().__doc__ or ""

    def examples(self, name: str) -> str:
        """Command lines for --help."""
        return getattr(self._module(), "EXAMPLES", "").replace("{stage}", name)

    def _module(self) -> Any:
        return importlib.import_module(self.prepare.partition(":")[0])


@dataclasses.dataclass(frozen=True)
class StageFlags:
    """The parsed flags of a run.

    Attributes:
        stage: name of the stage.
        configs: an instance of each of the stage's dataclasses; `of` finds one by its class.
        training: flags of the stage's TrainingArguments class that were given or that differ from its defaults.
        from_file: the words that the --config file stands for.
    """

    stage: str
    configs: tuple[Any, ...]
    training: dict[str, Any]
    from_file: tuple[str, ...] = ()

    def of(self, cls: type[Config]) -> Config:
        """The instance of the dataclass `cls`. Raises ValueError for one that the stage's line in the table does not name."""
        found = next((config for config in self.configs if type(config) is cls), None)
        if found is None:
            raise ValueError(
                f"{self.stage} has no flags of {cls.__name__}: name the class in `configs` of its line in STAGES."
            )
        return found

    @property
    def model(self) -> ModelConfig:
        return self.of(ModelConfig)

    @property
    def data(self) -> DataConfig:
        return self.of(DataConfig)

    @property
    def run(self) -> RunConfig:
        return self.of(RunConfig)

    @property
    def scores(self) -> ScoreFlags:
        """None are given where the stage does not name ScoreFlags in its `configs`."""
        return next((config for config in self.configs if type(config) is ScoreFlags), ScoreFlags())

    def checked(self, stage: Stage, world_size: int) -> "StageFlags":
        """With the stage's own defaults. Raises ValueError for what it refuses on `world_size` processes, and for flags of
        the Trainer that it does not take (training_flags.py)."""
        training = load(stage.check)(self, world_size) if stage.check else self.training
        training = check_training_flags(
            self.stage, stage.training_arguments, self.training, training, self.model, self.data, self.scores
        )
        return dataclasses.replace(self, training={"output_dir": f"runs/{self.stage}"} | training)


def load(path: str) -> Any:
    """What "module:name" names, imported now."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
