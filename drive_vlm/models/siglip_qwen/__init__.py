"""Drive-VLM: a SigLIP2 tower, temporal embeddings, a projector and a Qwen3 (or any other) causal language model."""

import math


def frame_tokens(patches: int, projector_type: str, pool_size: int, num_queries: int) -> int:
    """Tokens of siglip_qwen's language model for a frame of side x side patches: ceil(side / pool_size)^2, or the queries."""
    return num_queries if projector_type == "resampler" else math.ceil(math.isqrt(patches) / pool_size) ** 2
