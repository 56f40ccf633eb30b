"""A judge in this process."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.judges.judge import RETRY_TEMPERATURE, JudgeConfig, Request

# Of a block that a request to stop breaks off nothing is kept: it took a few batches.
_KEPT = "Judgements that are in the output file are kept: give the same command again to go on."


class LocalJudge:
    """A judge in this process: any family of drive_vlm.models, with pictures where it sees them."""

    def __init__(self, config: JudgeConfig) -> None:
        from drive_vlm.models import model_type

        assert config.judge_model is not None
        self.path = config.judge_model
        # A directory that is not a model is refused here, before anything is built.
        model_type(self.path)
        self.config, self.block = config, 8 * config.judge_batch_size
        self.requests = 0
        self._model: Any = None

    def ask(self, requests: Sequence[Request], attempt: int) -> list[str]:
        from drive_vlm.config import DataConfig, ModelConfig
        from drive_vlm.launch import stop
        from drive_vlm.sampling.local import LocalModel, Sampling, batches_of

        sampling = Sampling(
            max_new_tokens=self.config.judge_max_tokens, temperature=RETRY_TEMPERATURE if attempt else 0.0, seed=attempt
        )
        if self._model is None:
            self._model = LocalModel(ModelConfig(model=self.path), DataConfig(data=[]))
        samples = [sample_of(request, str(i)) for i, request in enumerate(requests)]
        batches = batches_of(samples, self.config.judge_batch_size)
        answers = self._model.answers(batches, sampling, [], between=lambda: stop.check(_KEPT))
        replies = {sample.id: answer.text for sample, answer in answers}
        self.requests += len(requests)
        return [replies[sample.id] for sample in samples]

    def describe(self) -> dict[str, Any]:
        from drive_vlm.store.fingerprint import model_fingerprint

        return {"judge_model": model_fingerprint(self.path), "judge_max_tokens": self.config.judge_max_tokens}

    def spent(self) -> dict[str, Any]:
        return {"requests": self.requests, "cost": None}


def sample_of(request: Request, name: str) -> Any:
    from drive_vlm.data.samples import IMAGE, Sample, Turn

    turns = [Turn(role, (text,)) for role, text in request.turns]
    turns[-1] = Turn("user", (IMAGE,) * len(request.images) + turns[-1].parts)
    columns = {"_max_tiles": None}
    return Sample(name, tuple(turns), request.images, None, None, columns, f"request {name} to the judge")
