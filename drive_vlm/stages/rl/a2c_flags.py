"""The flags of a2c. No torch; a file of its own, since the stage and its Trainer both read them."""

import dataclasses

from drive_vlm.config import field


@dataclasses.dataclass
class A2CFlags:
    """How completions are sampled, what they earn, and what is learned from them."""

    max_completion_length: int = field(64, help="tokens of a completion at most", least=1, most=2**20)
    num_generations: int = field(1, help="completions of a prompt in a batch", least=1, most=2**20)
    temperature: float = field(
        1.0, help="of sampling, and of the policy that learns; every token may be drawn", least=1e-3, most=1000
    )
    reward_weights: list[float] | None = field(
        None, help="a number for each of --rewards (default: 1 for each)", least=-1e9, most=1e9
    )
    reward_shape: str = field(
        "increments",
        help="increments: a token earns what it adds to the worth of the text; terminal: the last token earns it all",
        choices=("increments", "terminal"),
    )
    reward_every: int = field(1, help="with increments: score the text after every N-th token, and at its end", least=1)
    missing_eos_penalty: float = field(1.0, help="taken from a completion that is cut off at --max_completion_length")
    gamma: float = field(1.0, help="discount of a reward for each token that it comes later", least=0, most=1)
    gae_lambda: float = field(
        1.0, help="lambda of the advantage: 1 waits for all rewards, less trusts the value head", least=0, most=1
    )
    value_coef: float = field(0.1, help="weight of the value head's squared error")
    value_learning_rate: float = field(1e-4, help="rate of the value head; --learning_rate is the policy's", most=100)
    value_warmup_steps: int = field(10, help="first steps, in which only the value head learns", least=0)
    value_detach: bool = field(True, help="the value head's error does not move the model; false: it does")
    value_hidden: int = field(512, help="width of the value head's hidden layer", least=1, most=2**16)
    kl_coef: float = field(0.05, help="weight of the KL to the policy that the run began with; 0: no reference")
    entropy_coef: float = field(0.0, help="weight of the entropy of each token's distribution, which is rewarded")
    collapse_entropy: float = field(
        0.2,
        help="stop when the entropy of the answered actions falls below this share of the start's (rows with `actions`); 0: never",
        most=1,
    )
