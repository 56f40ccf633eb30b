"""Lets the public torchvision wheel work next to a CPU build of torch.

The wheel's `_C.so` links libtorch_cuda. Next to CPU torch it cannot be loaded, so the schemas `torchvision::nms` and
`torchvision::qnms` are missing and `import torchvision` raises "operator torchvision::nms does not exist", which also
breaks transformers processors, open_clip, timm, peft and TRL. `install_hook` defines the two schemas just before
torchvision's own import, and only when `_C.so` cannot be loaded: a matching CUDA or CPU build is left untouched.

This is the package's one import-time effect. It imports no torch itself.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
from pathlib import Path

# A torch Library takes its operators along when it is collected.
_LIBRARIES: list[object] = []


def nms(boxes, scores, iou_threshold):
    """Greedy non-maximum suppression in plain torch: boxes float[N, 4] (x1, y1, x2, y2), scores float[N] -> int64[K]."""
    import torch

    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    keep = []
    while order.numel():
        best, order = order[0], order[1:]
        keep.append(best)
        width = (torch.minimum(x2[best], x2[order]) - torch.maximum(x1[best], x1[order])).clamp(min=0)
        height = (torch.minimum(y2[best], y2[order]) - torch.maximum(y1[best], y1[order])).clamp(min=0)
        overlap = width * height
        order = order[overlap / (area[best] + area[order] - overlap) <= iou_threshold]
    return torch.stack(keep) if keep else order.new_empty((0,), dtype=torch.long)


def _native_ops_load(package: Path) -> bool:
    import torch

    for library in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return True
        # Linked against a CUDA runtime that this torch does not have.
        except OSError:
            continue
    return False


def _execute(run, module):
    """`run` of the real loader executes torchvision; before it the operators that the wheel cannot bring are defined."""
    import torch

    native = _native_ops_load(Path(module.__file__).parent)
    if not native:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", nms, "CPU")
        _LIBRARIES.append(library)
    run(module)
    # nms has a kernel now: lift the guard there, leave it on roi_align and the like.
    if not native:
        import torchvision.ops.boxes

        torchvision.ops.boxes._assert_has_ops = lambda: None


class _Finder(importlib.abc.MetaPathFinder):
    """Stays on sys.meta_path: transformers probes with find_spec("torchvision") long before it imports it."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            # Of this one loader: importlib calls it when torchvision is imported.
            setattr(spec.loader, "exec_module", functools.partial(_execute, spec.loader.exec_module))  # noqa: B010
        return spec


def install_hook() -> None:
    """Put the hook in place once; does nothing when torchvision is imported already."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
