"""Who judges answers: a chat server, a model in this process, or the row's own answer; open_judge reads the flags."""

from drive_vlm.judges.judge import Judge, JudgeConfig, ReferenceJudge, ServerJudge
from drive_vlm.judges.local import LocalJudge


def open_judge(config: JudgeConfig) -> Judge:
    """The judge of the flags. Raises ValueError without one, and for an address or a directory that cannot be one."""
    if config.judge_attempts < 1:
        raise ValueError(f"--judge_attempts {config.judge_attempts}: at least 1")
    if config.judge_backend == "reference":
        if config.judge_model:
            raise ValueError("--judge_model with --judge_backend reference, which asks no model: leave one of them out")
        return ReferenceJudge()
    if not config.judge_model:
        raise ValueError("no judge: give --judge_model, a name at --judge_url or a directory with --judge_backend hf")
    return LocalJudge(config) if config.judge_backend == "hf" else ServerJudge(config)
