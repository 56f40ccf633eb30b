"""Where the models of the steps run, and how they are opened."""

from typing import Any

from drive_vlm.launch.topology import read_topology


def device() -> str:
    """The GPU of this rank, else the CPU."""
    import torch

    return f"cuda:{read_topology().local_rank}" if torch.cuda.is_available() else "cpu"


def open_model(kind: Any, name: str, dtype: str | None = None, flag: str = "--model") -> Any:
    """`kind.from_pretrained(name)`: a configuration, a processor, or with `dtype` a model. Raises ValueError where it cannot be had."""
    options: dict[str, Any] = {}
    if dtype is not None:
        import torch

        options["dtype"] = getattr(torch, dtype)
    try:
        return kind.from_pretrained(name, **options)
    # KeyError: a model_type that this transformers does not know.
    except (OSError, ValueError, KeyError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{flag} {name}: cannot be loaded ({cause}). Give a directory of save_pretrained, or a hub id where there is a network."
        ) from error
