"""Memory that a training on a CPU frees is kept for its next update."""

from __future__ import annotations

import ctypes
import functools

# Names and numbers of malloc.h in the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 2**30  # bytes
LARGEST_IN_OLDER_VERSIONS = 2**25


@functools.cache
def keep_freed_memory() -> bool:
    """Let freed blocks stay with the process; True where that could be arranged.

    The GNU C library returns large blocks to the system as soon as they are freed. Each update
    frees its logits and activations and asks for the same sizes again, and the system clears every
    page of them first: for GPT's `cpu` preset a fifth of the time. PyTorch does the same for GPU
    memory by itself. Elsewhere (macOS, Windows, musl) nothing is changed. The process then holds
    its highest use of memory until it ends.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # absent from other libraries
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mapped = mallopt(M_MMAP_THRESHOLD, KEEP) or mallopt(M_MMAP_THRESHOLD, LARGEST_IN_OLDER_VERSIONS)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, KEEP))
