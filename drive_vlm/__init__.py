"""drive-vlm: a distributed training launcher for driving vision-language models, built on DeepSpeed."""

from drive_vlm._torchvision_cpu import install_hook

__version__ = "0.1.0"

install_hook()
