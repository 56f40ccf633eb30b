"""What a stage that samples says of its generation batches: rollouts are drawn by them, the plan reckons with them. No torch."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class GenerationBatch:
    """A generation batch: `prompts` over all processes with `generations` completions each, of `length` tokens at most.

    The function that a stage names as its `generation` (engine/stage.py) returns one.

    Attributes:
        rows: completions of it on one process.
        steps: micro batches that one pass over it takes; it is passed over `iterations` times.
        passes: how often it is scored without gradients: by the reference, and by the policy where an optimizer step ends
            before its last micro batch.
        inside: whether the next one is sampled while gradients are accumulated.
        whole: whether ZeRO-3 gathers all weights on every process to sample it.
        reference: whether a frozen reference lies in memory.
        value_head: width of the hidden layer of a value head that trains next to the model; 0 without one.
        chunked: whether the head's logits exist for a chunk of tokens at a time (models/training_forward.py), not for all
            completions of a micro batch.
    """

    prompts: int
    generations: int
    length: int
    rows: int
    steps: int
    iterations: int
    passes: int
    inside: bool
    whole: bool
    reference: bool
    value_head: int = 0
    chunked: bool = False
