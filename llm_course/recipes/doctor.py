"""What this machine has, and with which preset to begin."""

from __future__ import annotations

import importlib.metadata
import os
import platform

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "datasets", "tyro", "transformers")


def doctor_command() -> None:
    """Print versions, processor, GPU, precision and preset, a line each."""
    import torch

    from llm_course import __version__
    from llm_course.training.devices import choose_precision

    lines = [f"llm_course    {__version__}", f"Python        {platform.python_version()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name:<13} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name:<13} missing")
    lines.append(f"processor     {platform.machine()}, {os.cpu_count()} cores")
    lines.append(f"torch threads {torch.get_num_threads()}")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        gpu = f"{properties.name}, {memory:.0f} GiB"
        device, preset = "cuda", "h200" if memory > 70 else "t4"
    elif torch.backends.mps.is_available():
        gpu, device, preset = "Apple (mps)", "mps", "cpu"
    else:
        gpu, device, preset = "none", "cpu", "cpu"
    lines.append(f"GPU           {gpu}")
    lines.append(f"precision     {choose_precision(device)}")
    lines.append(f"begin with    --preset {preset}")
    print("\n".join(lines))
