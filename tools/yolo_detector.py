"""The detector of cache_detections.py, the only part of the project that imports ultralytics (AGPL-3.0)."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drive_vlm.launch.topology import read_topology

# The DetectedObjects of one frame.
Boxes = tuple[Any, ...]
Detect = Callable[[list[Any]], list[Boxes]]


def open_detector(path: Path, sha256: str | None, imgsz: int, conf: float, batch_size: int) -> tuple[Any, Detect]:
    """(what names the detector, pictures -> objects of each), of weights with this SHA-256 (None: any). `imgsz` in pixels, `conf`
    in 0..1. Raises ValueError without ultralytics or weights."""
    from drive_vlm.rewards.detections import Detector
    from drive_vlm.store.cache import cache_dir

    if not path.is_file():
        raise ValueError(
            f"--weights {path}: no such file, and nothing is downloaded here. Fetch it once where there is a network, "
            f"python -c \"from ultralytics import YOLO; YOLO('{path.name}')\", and give its path."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 and digest != sha256.lower():
        raise ValueError(f"--weights {path}: its SHA-256 is {digest}, not --sha256 {sha256}. It was not loaded.")
    # ultralytics would write its settings into the home directory.
    settings = Path(os.environ.get("YOLO_CONFIG_DIR") or cache_dir() / "ultralytics")
    settings.mkdir(parents=True, exist_ok=True)
    os.environ |= {"YOLO_CONFIG_DIR": str(settings), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    from PIL import Image

    own_open = Image.open
    try:
        import ultralytics
    except ImportError as error:
        raise ValueError(
            f"no ultralytics ({error}). Install the optional extra (AGPL-3.0): pip install drive-vlm[yolo]"
        ) from error
    finally:
        # Importing it wraps Image.open for the whole process: a file that is no picture then asks for pi_heif, in place of our words.
        Image.open = own_open
    try:
        model = ultralytics.YOLO(str(path), task="detect")
    except (TypeError, AttributeError, KeyError, RuntimeError) as error:
        # How ultralytics fails on a file that is not a checkpoint of its own; RuntimeError: torch's own, on one that was cut off (8.4.0).
        problem = str(error).partition("\n")[0]
        raise ValueError(
            f"--weights {path}: not YOLO weights, or not the whole file ({problem}). Fetch it again."
        ) from error
    version = f"ultralytics {ultralytics.__version__}"
    return Detector(path.name, digest, imgsz, conf, version), yolo_pass(model, imgsz, conf, batch_size)


def yolo_pass(model: Any, imgsz: int, conf: float, batch_size: int) -> Detect:
    """Objects of each of a list of RGB pictures. Pictures of one size go together: among others they would be padded, and
    what is found would depend on the neighbours."""
    import torch

    from drive_vlm.rewards.detections import DetectedObject

    device = f"cuda:{read_topology().local_rank}" if torch.cuda.is_available() else "cpu"

    def found(result: Any) -> Boxes:
        rows = zip(result.boxes.xyxy.tolist(), result.boxes.conf.tolist(), result.boxes.cls.tolist(), strict=True)
        return tuple(
            DetectedObject(result.names[int(kind)], round(score, 4), tuple(round(value, 1) for value in box))
            for box, score, kind in rows
        )

    def detect(pictures: list[Any]) -> list[Boxes]:
        answers: list[Boxes] = [()] * len(pictures)
        for size in {picture.size for picture in pictures}:
            group = [i for i, picture in enumerate(pictures) if picture.size == size]
            for start in range(0, len(group), batch_size):
                part = group[start : start + batch_size]
                results = model.predict(
                    [pictures[i] for i in part], imgsz=imgsz, conf=conf, device=device, verbose=False
                )
                for i, result in zip(part, results, strict=True):
                    answers[i] = found(result)
        return answers

    return detect
