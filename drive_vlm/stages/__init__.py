"""Training stages; each builds one transformers Trainer. STAGES is the one table that everything reads.

`python -m drive_vlm`, the plan, recipes (through `python -m drive_vlm stages`) and the tests take the stages from here. A
new stage is one file and one line; ADDING.md says what to write, in order. The fields are explained at Stage
(engine/stage.py). Nothing heavy is imported here.
"""

from collections.abc import Sequence

from drive_vlm.stages.engine.stage import SHARED_CONFIGS, Stage

STAGES: dict[str, Stage] = {
    "sft": Stage(
        prepare="drive_vlm.stages.sft:prepare",
        help="supervised fine-tuning of a driving VLM",
        kind="rows",
    ),
    "grpo": Stage(
        prepare="drive_vlm.stages.rl.grpo:prepare",
        help="reinforcement learning on rewards, held to the policy it began with",
        kind="prompts",
        training_arguments="trl.GRPOConfig",
        configs=(
            "drive_vlm.config:ModelConfig",
            "drive_vlm.config:DataConfig",
            "drive_vlm.stages.engine.score_flags:ScoreFlags",
            "drive_vlm.stages.rl.reward_flags:RewardFlags",
            "drive_vlm.stages.rl.samples_file:SampleConfig",
            "drive_vlm.stages.rl.alarms:AlarmConfig",
            "drive_vlm.config:RunConfig",
        ),
        more_configs="drive_vlm.stages.rl.reward_flags:reward_configs",
        check="drive_vlm.stages.rl.grpo:check_flags",
        generation="drive_vlm.stages.rl.grpo:generation_of",
    ),
    "a2c": Stage(
        prepare="drive_vlm.stages.rl.a2c:prepare",
        help="reinforcement learning of each token, with a value head",
        kind="prompts",
        configs=(
            "drive_vlm.config:ModelConfig",
            "drive_vlm.config:DataConfig",
            "drive_vlm.stages.engine.score_flags:ScoreFlags",
            "drive_vlm.stages.rl.reward_flags:RewardFlags",
            "drive_vlm.stages.rl.a2c_flags:A2CFlags",
            "drive_vlm.stages.rl.samples_file:SampleConfig",
            "drive_vlm.stages.rl.alarms:AlarmConfig",
            "drive_vlm.config:RunConfig",
        ),
        more_configs="drive_vlm.stages.rl.reward_flags:reward_configs",
        check="drive_vlm.stages.rl.a2c:check_flags",
        generation="drive_vlm.stages.rl.a2c:generation_of",
    ),
    "dpo": Stage(
        prepare="drive_vlm.stages.preference.stage:prepare",
        help="preference training on pairs of answers",
        kind="pairs",
        training_arguments="trl.DPOConfig",
        configs=(*SHARED_CONFIGS, "drive_vlm.stages.preference.stage:ReferenceFlags"),
        check="drive_vlm.stages.preference.stage:check_flags",
    ),
    "spin": Stage(
        prepare="drive_vlm.stages.preference.stage:prepare",
        help="self-play: the rejected answers are the model's own of the round before",
        kind="pairs",
        training_arguments="trl.DPOConfig",
        configs=(*SHARED_CONFIGS, "drive_vlm.stages.preference.stage:ReferenceFlags"),
        check="drive_vlm.stages.preference.stage:check_flags",
    ),
}


def run(name: str, words: Sequence[str]) -> None:
    """`python -m drive_vlm NAME WORDS`. Exits with 2 and one line for what a user can fix."""
    from drive_vlm.stages.engine.run import run_stage

    run_stage(name, STAGES[name], words)


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm stages`: the names, one a line, for Bash (recipes/_launch.sh)."""
    print("\n".join(STAGES))
