"""Which of the models of the model_type `minicpmv` a config.json is of; neither torch nor transformers is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Version:
    """What sets two published models apart.

    Attributes:
        text: model_type of the language model.
        tower: how config.json names the tower.
        queries: tokens of the language model for one slice.
        image_token_id: the token that stands for a slice's features, where it is known without the tokenizer.
    """

    name: str
    text: str
    tower: str
    queries: int
    image_token_id: int | None


VERSIONS = {
    "2.5": Version("2.5", "llama", "idefics2", 96, 128002),
    "2.6": Version("2.6", "qwen2", "siglip", 64, None),
}
# Their config.json has the same model_type, their modules are others.
_OTHERS = {"2.0": "MiniCPM-V-2.0", "4.0": "MiniCPM-V-4", "4": "MiniCPM-V-4", "4.5": "MiniCPM-V-4.5"}


def version_of(stored: Mapping[str, Any]) -> Version:
    """The version of a config.json, which says it or names the tower. Raises ValueError for all other models of the model_type."""
    tower = (stored.get("vision_config") or {}).get("model_type", "")
    said = str(stored["version"]) if stored.get("version") is not None else ""
    found = VERSIONS.get(said) if said else next((v for v in VERSIONS.values() if tower.startswith(v.tower)), None)
    if found is None or not tower.startswith(found.tower) or stored.get("init_audio") or stored.get("audio_config"):
        # o-2.6 calls itself 2.6; MiniCPM-V-2.0 and older have a tower of timm, without a vision_config.
        audio = stored.get("init_audio") or stored.get("audio_config")
        name = "MiniCPM-o-2.6" if audio else _OTHERS.get(said, "" if tower else "MiniCPM-V-2.0 or older")
        raise ValueError(
            f"config.json: {name or 'this model'} (version {said or 'not named'}, tower {tower or 'not named'}) has the model_type minicpmv, "
            "but other modules. Supported are MiniCPM-Llama3-V-2_5 (version 2.5, tower idefics2) and MiniCPM-V-2_6 (version 2.6, "
            "tower siglip)."
        )
    return found
