"""Several processes: each computes its share of the batches, and all sums go over all of them.

`torchrun --nproc-per-node N -m llm_course pretrain ...` starts N processes that find each other
through the environment. Without torchrun everything here does nothing, and the parts of torch that
shard tensors, which take a second to import, are not imported.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llm_course.errors import ConfigError


def announced() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: torch.device) -> torch.device:
    """Join the process group that torchrun announces, and stay to the end; this process's device.

    A sharded model needs the group also after training, to be evaluated or gathered.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if dist.is_initialized() or not announced():
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


def largest(value: int, device: torch.device) -> int:
    """The largest value over all processes, so that they decide alike."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def gather(values: Tensor, device: torch.device) -> list[Tensor]:
    """The tensors of all processes, which have one shape, on the CPU."""
    if world_size() == 1:
        return [values.cpu()]
    values = values.to(device)
    everyone = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(everyone, values)
    return [each.cpu() for each in everyone]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def parallelise(module: nn.Module, blocks: Sequence[nn.Module], mode: str) -> nn.Module:
    """`module`, whose forward is the loss, made to share its work among the processes.

    "ddp" copies the model to each (Li et al. 2020). "fsdp" shards the parameters block by block
    (FSDP2; Zhao et al. 2023), for a model too large for one device.
    """
    if world_size() == 1:
        return module
    if mode == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for block in blocks:
            fully_shard(block)
        fully_shard(module)
        return module
    # A head that this loss does not use is no fault. Where all are used, torch warns once that
    # looking for unused ones costs something: that is meant.
    with warnings.catch_warnings():
        # torch 2.13 has a new name for broadcast_buffers, which 2.11 does not know.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only a part of each parameter."""
    if world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


@contextmanager
def gradients_shared(module: Any, now: bool) -> Iterator[None]:
    """Share gradients in this backward pass only if `now`: once an update, not once a batch."""
    if is_sharded(module):
        module.set_requires_gradient_sync(now)
        yield
    elif isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
    else:
        yield


def _is_part(tensor: Tensor) -> bool:
    if world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Any) -> Tensor:
    """All of a tensor of which this process may hold a part; every process must call it."""
    return tensor.full_tensor() if _is_part(tensor) else tensor


def own_part(tensor: Any) -> Tensor:
    """What this process holds of a tensor, to be changed in place."""
    return tensor.to_local() if _is_part(tensor) else tensor


def sharded_as(tensor: Tensor, example: Any) -> Tensor:
    """The opposite of `whole`: `tensor` on the device of `example`, sharded as it is."""
    tensor = tensor.to(example.device)
    if not _is_part(example):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, example.device_mesh, example.placements)
