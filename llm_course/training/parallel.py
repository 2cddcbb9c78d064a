"""Several processes: each computes its share of the batches, and all sums go over all of them.

`torchrun --nproc-per-node N -m llm_course pretrain ...` starts N processes that find each other
through the environment. Without torchrun everything here does nothing, and the parts of torch that
shard tensors, which take a second to import, are not imported.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llm_course.errors import ConfigError


def join(device: torch.device) -> torch.device:
    """Join the process group that torchrun announces, and stay to the end; this process's device.

    A sharded model needs the group also after training, to be evaluated or gathered.
    """
    if device.type == "cuda":
        here = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is set but not {', '.join(missing)}: start with torchrun")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_sum(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def largest(value: int) -> int:
    """The largest value over all processes, so that they decide alike."""
    if world_size() == 1:
        return value
    on_gpu = dist.get_backend() == "nccl"
    shared = torch.tensor(value, device=torch.cuda.current_device() if on_gpu else "cpu")
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def shard(module: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Leave each process a part of every parameter, block by block (FSDP2; Zhao et al. 2023).

    For a model too large for one device; `module` is the one whose forward is the loss.
    """
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(block)
    fully_shard(module)


def share_gradients(module: nn.Module, batch: Any) -> nn.Module:
    """`module`, whose forward is the loss, with the gradients of all processes (Li et al. 2020).

    A head that this loss does not use is no fault, but looking for it costs something in every
    update: `batch` tells whether there is one. Nothing is done for one process, or for shards.
    """
    if world_size() == 1 or hasattr(module, "set_requires_gradient_sync"):
        return module
    parameters = [p for p in module.parameters() if p.requires_grad]
    device = parameters[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        loss = torch.stack([total for total, _ in module(batch).values()]).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    unused = largest(any(each is None for each in gradients))
    with warnings.catch_warnings():
        # torch 2.13 has a new name for broadcast_buffers, which 2.11 does not know.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=bool(unused),
        )


@contextmanager
def gradients_shared(module: Any, now: bool) -> Iterator[None]:
    """Share gradients in this backward pass only if `now`: once an update, not once a batch."""
    if isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
        return
    if hasattr(module, "set_requires_gradient_sync"):  # FSDP2's, whose import takes a second
        module.set_requires_gradient_sync(now)
    yield


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole and on the CPU of the first process, elsewhere nothing; one after the other."""
    kept = {}
    for name, tensor in tensors.items():
        part: Any = tensor.detach()
        one = part.full_tensor() if hasattr(part, "full_tensor") else part  # by all processes
        if rank() == 0:
            kept[name] = one.cpu()
    return kept
