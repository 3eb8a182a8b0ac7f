"""The processes of a run (torchrun, SLURM, or a single one), their devices and messages, based on timm's helpers."""

import ctypes
import dataclasses
import os
import signal
import sys
from typing import Any, List, Optional

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, is_distributed_env


@dataclasses.dataclass
class World:
    """This process among all processes of a run.

    Args:
        device: Device of this process.
        rank: Rank of this process.
        size: Number of processes.
        control: Process group of CPU messages, so that exchanging them does not wait for a GPU.
        joined: Whether `init_world` created the process group.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None
    joined: bool = False

    @property
    def is_primary(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        return self.size > 1

    @property
    def local_size(self) -> int:
        """Number of processes on this machine as torchrun or SLURM state it, at most all."""
        stated = os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or ''
        return min(int(stated), self.size) if stated.isdigit() else self.size

    def gather(self, value: Any) -> List[Any]:
        """The values of all processes, in order of their ranks."""
        if not self.is_distributed:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def max(self, value: int) -> int:
        """The largest of the values of all processes."""
        if not self.is_distributed:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.max(0)


def pick_device(name: Optional[str] = None) -> torch.device:
    """The device of this name, by default the best available: an accelerator (CUDA, MPS, ...) or the CPU.

    Raises:
        ValueError: if the device does not exist.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device('cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as e:  # each backend raises its own
        raise ValueError(f"Device '{name}' cannot be used ({str(e).splitlines()[0]}).") from e
    return device


def synchronize(device: torch.device) -> None:
    """Wait until a device has ended its work, which accelerators do on their own."""
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)


def describe_device(device: torch.device) -> str:
    """The name of an accelerator, or the number of CPU threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, {torch.get_num_threads()} threads' if device.type == 'cpu' else str(device)


def end_with_parent(signum: int, parent: int) -> None:
    """On Linux, have this process signalled when its parent ends for any reason; at once if it already has."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)


def init_world(device: Optional[str] = None) -> World:
    """Join the processes of a run, as described by the variables of torchrun or SLURM that timm reads.

    Args:
        device: Name of the device, see `pick_device`.

    Raises:
        ValueError: if the device does not exist.
    """
    picked = pick_device(device)
    if dist.is_initialized():
        return World(picked, dist.get_rank(), dist.get_world_size(), dist.new_group(backend='gloo'))
    if not is_distributed_env():
        return World(picked)
    if dist.is_torchelastic_launched():
        # a signal that torchrun does not forward (SIGUSR1 by default) ends only torchrun: its processes would train on
        end_with_parent(signal.SIGTERM, os.getppid())
    info = init_distributed_device_so(device=str(picked))
    return World(
        torch.device(info['device']),
        info['global_rank'],
        info['world_size'],
        dist.new_group(backend='gloo'),
        joined=True,
    )


def leave_world(world: World) -> None:
    """Destroy the process group that `init_world` created."""
    if world.joined:
        dist.destroy_process_group()
