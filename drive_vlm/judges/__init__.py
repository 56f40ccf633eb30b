"""Who judges answers: a chat server, a model in this process, or the row's own answer."""

from drive_vlm.judges.judge import AnswerComparer, Comparer, Judge, JudgeConfig, PromptComparer, ServerJudge
from drive_vlm.judges.local import LocalJudge
from drive_vlm.judges.verdicts import Turns


def open_judge(config: JudgeConfig) -> Judge:
    """The judge of the flags. Raises ValueError where they name none, and for an address or a directory that cannot be one."""
    if config.judge_attempts < 1:
        raise ValueError(f"--judge_attempts {config.judge_attempts}: at least 1")
    if config.judge_backend == "reference":
        raise ValueError(
            "--judge_backend reference compares two answers with the row's own; it rates no answer and reads no prompt"
        )
    if not config.judge_model:
        raise ValueError("no judge: give --judge_model, a name at --judge_url or a directory with --judge_backend hf")
    return LocalJudge(config) if config.judge_backend == "hf" else ServerJudge(config)


def open_comparer(config: JudgeConfig, prompt: Turns) -> Comparer:
    """What compares two answers: the judge of the flags with `prompt`, or the row's own answer. Raises as open_judge does."""
    if config.judge_backend != "reference":
        return PromptComparer(open_judge(config), prompt, config.judge_attempts)
    if config.judge_model:
        raise ValueError("--judge_model with --judge_backend reference, which asks no model: leave one of them out")
    return AnswerComparer()
