"""One model on several processes: replicated (DDP), or sharded (FSDP2), by torch's own wrappers.

Accelerate finds the processes and their devices. It is not asked to wrap modules, since its FSDP2 takes one model only
and is off on a CPU. Sources: Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from foundation.config import require
from foundation.errors import ConfigError, TesseraError, TrainingError, one_line
from foundation.hardware import announce_device, best_device, usable_device
from foundation.training.heartbeat import SAY_SECONDS, VARIABLE, heartbeat, is_of_processes, process_timeout
from foundation.training.precision import Settled

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_accelerator(device: str) -> Accelerator:
    """The devices and processes of a training; the main process says on stderr which device it uses.

    Args:
        device: the recipe's machine.device: auto, or a device such as cuda:1; in a training of several processes a kind
            of device, of which the launcher gives each process its own.

    Raises:
        ConfigError: no such device here, a numbered one for several processes, or another one than the launcher's.
        TrainingError: the other processes do not come within ``TESSERA_PROCESS_TIMEOUT``.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    only = _flag("ACCELERATE_USE_CPU", default=False) and device == "auto"
    name = "cpu" if only else device
    if several:
        require(":" not in name, "machine.device", name, "a kind of device, such as cuda: the launcher numbers them")
        name = best_device() if name == "auto" else name
    else:
        name = usable_device(name, "machine.device", announce=False)
    kind, _, index = name.partition(":")
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)  # quantizers synchronise their own buffers
    limit = InitProcessGroupKwargs(timeout=process_timeout())
    with _variable("ACCELERATE_TORCH_DEVICE", None if several or kind == "cpu" else name):
        try:
            with _meeting() if several else contextlib.nullcontext():
                accelerator = Accelerator(mixed_precision="no", cpu=kind == "cpu", kwargs_handlers=[plain, limit])
        except TesseraError:
            raise
        except ValueError as error:  # of accelerate, whose state is the process's
            what, fix = f"cannot be used in this process: {error}", "start a new process"
            raise ConfigError(what, field="machine.device", found=device, fix=fix) from error
    found, fix = str(accelerator.device), "use auto, or set no other device for accelerate"
    require(accelerator.device.type == kind, "machine.device", name, f"{found}, which accelerate uses", fix)
    if index and kind != "cpu":
        getattr(torch, kind).set_device(int(index))
    if accelerator.is_main_process:
        announce_device(found)
    heartbeat(accelerator)
    return accelerator


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    """While processes find each other: says for how many this one waits, and where, and gives a reason in the end.

    Raises:
        TrainingError: they do not come in time.
    """
    rank, n_processes = os.environ.get("RANK", "0"), os.environ["WORLD_SIZE"]
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    limit = process_timeout().total_seconds()
    said = f"process {rank} waits at {place} for the others of {n_processes}, at most {limit:g} s ({VARIABLE})"
    timer = threading.Timer(SAY_SECONDS, lambda: print(said, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        if not is_of_processes(error):
            raise
        raise TrainingError(
            f"process {rank} has not met the others of {n_processes}",
            field=f"MASTER_ADDR:MASTER_PORT {place}",
            found=one_line(error),
            expected=f"all of them within {limit:g} s ({VARIABLE})",
            fix="start each with this address and its own rank, and let the port through; see the others' messages",
        ) from error
    finally:
        timer.cancel()


@contextlib.contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for a while; None leaves it as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif value is not None:
            del os.environ[name]


def sharding_asked(accelerator: Accelerator) -> bool:
    """Whether ``accelerate launch`` asks for FSDP, and there is more than one process to share the weights.

    Raises:
        ConfigError: FSDP in its first version, or weights kept in the host's memory; neither is done here.
    """
    if not _flag("ACCELERATE_USE_FSDP", default=False):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    require(version == "2", "fsdp_version", version, "2", "set it in the configuration of accelerate launch")
    offload = _flag("FSDP_OFFLOAD_PARAMS", default=False)
    require(not offload, "fsdp_offload_params", offload, "false", "set it in the configuration of accelerate launch")
    return accelerator.num_processes > 1


def replicated(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module to call in training: it averages gradients over all processes. The module itself for one process."""
    if accelerator.num_processes == 1:
        return module
    options = {} if accelerator.ddp_handler is None else dict(accelerator.ddp_handler.to_kwargs())
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:  # torch 2.13 renamed it
        options["forward_sync_buffers"] = options.pop("broadcast_buffers", True)
    ids = None if accelerator.device.type == "cpu" else [accelerator.local_process_index]
    return DistributedDataParallel(module, device_ids=ids, **options)


def shard(
    root: nn.Module, blocks: Sequence[nn.Module], accelerator: Accelerator, precision: Settled = "float32"
) -> None:
    """Leave each process its share of every parameter, in place; calls of ``root`` gather what they need.

    In bf16 the blocks are gathered in bf16, half the bytes; shares, sums of gradients and the rest stay in float32, as
    does what passes between blocks.

    Each of ``blocks`` is gathered and let go as a whole, everything else of ``root`` once per call. All processes hold
    the same weights before. Tags of parameters stay, names too.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    again = _flag("FSDP_RESHARD_AFTER_FORWARD", default=True)
    lower = torch.bfloat16 if precision == "bf16" else None
    types = MixedPrecisionPolicy(lower, reduce_dtype=torch.float32, cast_forward_inputs=False)
    with keeping_tags(root):
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=again, mp_policy=types)
        fully_shard(root, mesh=mesh)


@contextlib.contextmanager
def keeping_tags(module: nn.Module) -> Iterator[None]:
    """Parameters that are replaced in here keep their tags (``no_decay``, ``n_stacked``), by name."""
    tags = {name: dict(parameter.__dict__) for name, parameter in module.named_parameters()}
    yield
    for name, parameter in module.named_parameters():
        parameter.__dict__.update(tags[name])


@contextlib.contextmanager
def unsynchronised(wrapped: nn.Module) -> Iterator[None]:
    """Forward and backward passes in here only add up gradients; the first backward after it synchronises the sum."""
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    elif hasattr(wrapped, "set_requires_gradient_sync"):  # FSDP2
        sharded = cast(Any, wrapped)
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)
    else:
        yield


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share, in the same memory; a plain tensor itself."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All shares joined; every process calls it. A plain tensor is returned itself."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether other processes hold parts of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def sharded_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The share of a whole tensor that ``like`` holds, if they have one shape and ``like`` is sharded; else itself.

    Every process calls it; process 0's values count.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def full_like(share: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """All processes' shares of a tensor that is shared as ``like`` is, joined; every process calls it.

    A ``like`` that is not shared leaves the argument as it is.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return share
    mesh, size, stride = like.device_mesh, like.shape, like.stride()
    return DTensor.from_local(share, mesh, like.placements, run_check=False, shape=size, stride=stride).full_tensor()


def share_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's share of a tensor that every process holds, as it has one of ``like``; nothing is sent."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(like, DTensor):
        return tensor
    everywhere = [Replicate()] * like.device_mesh.ndim
    whole = DTensor.from_local(tensor, like.device_mesh, everywhere, run_check=False)
    return whole.redistribute(placements=like.placements).to_local()


def gathered(state: Any, *, keep: bool) -> Any:
    """A nested state with every sharded tensor joined, in the host's memory; every process calls it.

    Tensors are joined one at a time. A process that does not ``keep`` them gets empty ones instead.
    """
    if isinstance(state, dict):
        return {name: gathered(value, keep=keep) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [gathered(value, keep=keep) for value in state]
    if isinstance(state, torch.Tensor) and is_sharded(state):
        joined = full_tensor(state.detach())
        return joined.cpu() if keep else torch.empty(0)
    return state


def on_every_process(number: int, accelerator: Accelerator) -> list[int]:
    """The number of each process; every process calls it and gets the same list."""
    return all_gather_rows(torch.tensor([[number]], device=accelerator.device)).flatten().tolist()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over processes, in place; the tensor itself for one process."""
    if _several():
        distributed.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over processes, without a gradient; the tensor itself for one process."""
    return all_reduce_sum(tensor.clone()) / distributed.get_world_size() if _several() else tensor


def global_mean(mean: torch.Tensor) -> torch.Tensor:
    """The mean over processes of each one's mean over equally many rows, while gradients are recorded.

    A process's own mean gets the whole gradient of the global one; averaged over processes, as data-parallel training
    does, it is the gradient of one process with all rows. Without gradients, when processes may do different work, the
    argument comes back.
    """
    return mean + (all_reduce_mean(mean.detach()) - mean.detach()) if torch.is_grad_enabled() else mean


def average_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Average gradients over processes, in place: for a step whose passes did not go through ``replicated``'s module.

    Every process calls it, with gradients of the same parameters.
    """
    for parameter in parameters:
        if _several() and parameter.grad is not None:
            all_reduce_sum(parameter.grad).div_(distributed.get_world_size())


def all_gather_rows(rows_ND: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, (world * N, D); every process must bring equally many."""
    if not _several():
        return rows_ND
    parts = [torch.empty_like(rows_ND) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows_ND.contiguous())
    return torch.cat(parts)


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Process 0's values, in place."""
    if _several():
        distributed.broadcast(tensor, src=0)
    return tensor


def _flag(name: str, *, default: bool) -> bool:
    return os.environ.get(name, str(default)).strip().lower() in ("1", "true", "yes", "on")
