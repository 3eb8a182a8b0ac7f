"""Where the time of a training step and of inference goes, and how far each part is from what the machine can do (the
roofline).

Each operator of an eager network is timed by itself, with its operations and the bytes of its arguments and results.
What computes is bound by the peak of a matrix product, what moves data by that of a copy; the roofline is the greater
of the two times (Williams, Waterman, Patterson: Roofline, Communications of the ACM 52, 2009).
"""

import statistics
import time
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ..utils.distributed import synchronize
from ..utils.memory import keep_freed_memory, kept_memory
from .config import BenchConfig
from .inference import create_network
from .machine import Peaks, measure_peaks
from .step import STEP_FORMS, create_step, create_training
from .tables import Row
from .timing import WARMUP_CALLS, take_turns

TOTAL = 'all operators'
FORM = '+ kept memory'  # the best of those whose operators can be timed one by one
KINDS = {  # part -> operators; convolutions are told apart by their kernels
    'matrix products': ('mm', 'addmm', 'bmm', 'baddbmm'),
    'attention': ('_scaled_dot_product',),
    'BatchNorm': ('native_batch_norm', '_native_batch_norm', 'cudnn_batch_norm', '_batch_norm'),
    'LayerNorm': ('native_layer_norm',),
    'GELU': ('gelu',),
    'loss': ('mse_loss', '_log_softmax', '_softmax', 'nll_loss', 'kl_div', 'xlogy'),
    'max pooling': ('max_pool', 'mkldnn_max_pool'),  # before the next, whose names begin as well with 'max'
    'pools and gates (CBAM)': (
        *('amax', 'mean', 'sum', 'max', 'sigmoid', 'mul', 'addcmul', 'sub', 'sign', 'eq', 'where', 'div'),
        'threshold_backward',
    ),
    'sums of branches': ('add',),
    'copies': ('copy', 'clone', '_to_copy', 'contiguous', 'cat', 'fill', 'zero', 'constant_pad_nd'),
}


class Operator(NamedTuple):
    """A call of an operator: the network and part that it belongs to, its seconds, operations and bytes."""

    network: str
    part: str
    seconds: float
    flops: int
    bytes: int


def name_part(name: str, args: Tuple[Any, ...]) -> str:
    """Part of the step that an operator belongs to.

    Args:
        name: The operator without overload, such as 'convolution_backward'.
        args: What it is called with.
    """
    if name.startswith(('convolution', 'mkldnn_convolution', 'cudnn_convolution')):
        weight = args[2] if name == 'convolution_backward' else args[1]
        if weight.shape[1] == 1 and weight.shape[0] > 1:
            return 'depthwise convolutions'
        return f'convolutions {weight.shape[2]}x{weight.shape[3]}'
    found = (part for part, names in KINDS.items() if name.startswith(names))
    return next(found, 'other operators')


def count_flops(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], result: Any) -> int:
    """Floating-point operations of convolutions, and of products as PyTorch counts them; 0 for other operators."""
    name = func.overloadpacket.__name__
    if name == 'convolution':
        return 2 * result.numel() * args[1][0].numel()
    if name == 'convolution_backward':
        grad, _, weight, *_, mask = args
        return 2 * grad.numel() * weight[0].numel() * sum(mask[:2])  # PyTorch's count leaves out the groups
    if name == '_scaled_dot_product_flash_attention_for_cpu':
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if name == '_scaled_dot_product_flash_attention_for_cpu_backward':
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    count = flop_registry.get(func.overloadpacket)
    return int(count(*args, **kwargs, out_val=result)) if count else 0


def count_bytes(*values: Any) -> int:
    """Bytes of all tensors in arguments and results."""
    return sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


class OperatorTimer(TorchDispatchMode):
    """Within the context, time every operator by itself.

    In `HDKDTask` the teacher computes first, without gradients; from the first operator with them on it is the student.

    Args:
        device: The device of the tensors.
        network: Name of the network that computes, or computes first.
    """

    def __init__(self, device: torch.device, network: str = 'teacher'):
        super().__init__()
        self.device = device
        self.operators: List[Operator] = []
        self.network = network
        self.is_optimiser = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.network == 'teacher' and torch.is_grad_enabled():
            self.network = 'student'
        synchronize(self.device)
        start = time.perf_counter()
        result = func(*args, **kwargs)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        if func.is_view:
            return result
        part = 'optimiser' if self.is_optimiser else name_part(func.overloadpacket.__name__, args)
        flops = count_flops(func, args, kwargs, result)
        self.operators.append(Operator(self.network, part, seconds, flops, count_bytes(args, kwargs, result)))
        return result


def time_step(
    compute_loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, device: torch.device
) -> List[Operator]:
    """The operators of a training step, in order."""
    optimizer.zero_grad()
    with OperatorTimer(device) as timer:
        loss = compute_loss()
        loss.backward()
        timer.is_optimiser = True
        optimizer.step()
    return timer.operators


def time_inference(name: str, network: nn.Module, x: torch.Tensor) -> List[Operator]:
    """The operators of a network's forward pass, in order.

    Args:
        name: What the network is called.
        network: The network, in inference mode.
        x: Images, (B, 3, H, W).
    """
    with torch.no_grad(), OperatorTimer(x.device, name) as timer:
        network(x)
    return [op._replace(part=_name_of_inference(op.part, name)) for op in timer.operators]


def _name_of_inference(part: str, network: str) -> str:
    """What a part of a training step is in inference: a softmax belongs to no loss, and CBAM is our networks'."""
    if part == 'loss':
        return 'attention'
    return part if network.startswith('hdkd') else part.replace(' (CBAM)', '')


def _repeat(time_operators: Callable[[], List[Operator]], rounds: int, device: torch.device) -> List[List[Operator]]:
    """The operators of each round, with freed memory kept, after a warm-up."""
    with kept_memory(device):
        for _ in range(WARMUP_CALLS):
            time_operators()
        return [time_operators() for _ in range(rounds)]


def measure_profile(config: BenchConfig, device: torch.device) -> List[Row]:
    """Time the operators of a step in its best eager form, and the step as a whole with and without kept memory."""
    form, size = STEP_FORMS[FORM], (config.batch_size, config.img_size)
    peaks = measure_peaks(device, config.rounds)
    step = create_step(form, *size, device)
    has_kept = device.type == 'cpu' and keep_freed_memory(False)
    forms = {'step': step, 'returned': step} if has_kept else {'step': step}
    seconds = take_turns(forms, config.rounds, device, ('step',) if has_kept else ())
    training = create_training(form, *size, device)
    rows = list_parts(_repeat(lambda: time_step(*training, device), config.rounds, device), peaks)
    rows.append(dict(name='step', ms=1000 * seconds['step']))
    if has_kept:
        rows.append(dict(name='step, freed memory returned', ms=1000 * seconds['returned']))
    return _complete(rows, 'profile', config)


def measure_inference_profile(config: BenchConfig, device: torch.device) -> List[Row]:
    """Time the operators of the forward pass of each network, fused and channels-last, and the pass as a whole."""
    peaks = measure_peaks(device, config.rounds)
    has_kept = device.type == 'cpu' and keep_freed_memory(False)
    x = torch.randn(config.batch_size, 3, config.img_size, config.img_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    rows: List[Row] = []
    for name in config.models:
        network = create_network(name, 'fused', config.img_size, device)
        call = partial(_infer, network, x)
        seconds = take_turns({'pass': call}, config.rounds, device, ('pass',) if has_kept else ())
        own = list_parts(_repeat(partial(time_inference, name, network, x), config.rounds, device), peaks)
        own.append(dict(name='forward pass', form=name, ms=1000 * seconds['pass']))
        rows += _complete(own, 'inference-profile', config)
    return rows


def _infer(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(x)


def _complete(rows: List[Row], part: str, config: BenchConfig) -> List[Row]:
    """The rows of a profile with each one's share of the operators' time, and the size of the batch."""
    total = next(row['ms'] for row in rows if row['name'] == TOTAL)
    size_of = dict(img_size=config.img_size, batch_size=config.batch_size)
    return [dict(row, part=part, share=row['ms'] / total, **size_of) for row in rows]


def list_parts(rounds: List[List[Operator]], peaks: Peaks) -> List[Row]:
    """A row for each part of each network, the slowest first: milliseconds (the median of the rounds), operations and
    bytes per second, and the share of the roofline. The last row is all of them, without a network if they are of two.

    Args:
        rounds: The operators of some steps.
        peaks: What the machine reaches at best.
    """
    keys = dict.fromkeys((op.network, op.part) for op in rounds[0])
    rows = []
    for network, part in keys:
        own = [[op for op in operators if (op.network, op.part) == (network, part)] for operators in rounds]
        seconds = statistics.median(sum(op.seconds for op in operators) for operators in own)
        least = sum(max(op.flops / peaks.flops, op.bytes / peaks.bytes) for op in own[0])
        rows.append(
            dict(
                name=part,
                form=network,
                ms=1000 * seconds,
                gflops=sum(op.flops for op in own[0]) / seconds / 1e9,
                gbytes=sum(op.bytes for op in own[0]) / seconds / 1e9,
                ratio=least / seconds,
                roofline_ms=1000 * least,
            )
        )
    networks = list(dict.fromkeys(network for network, _ in keys))
    total, least = (sum(row[key] for row in rows) for key in ('ms', 'roofline_ms'))
    last = dict(name=TOTAL, ms=total, ratio=least / total, roofline_ms=least)
    if len(networks) == 1:
        last['form'] = networks[0]
    return [*sorted(rows, key=lambda row: -row['ms']), last]
