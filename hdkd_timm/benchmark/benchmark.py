"""How fast the networks are, beside the obvious alternatives: `hdkd bench`.

    step        a training step of HDKD in several forms, beside one that runs the stages again for each map, as the
                published loop does
    inference   images a second of our networks and of others of timm's, in several forms
    epoch       images a second of a training from files, with a cache and without
    growth      time of a training step by image size and by batch size

The forms of a thing take turns in one process, so that what else the machine does meets all alike. Times are medians.
Random weights and images: what they are makes no difference to the time.
"""
import dataclasses
import gc
import multiprocessing
import platform
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.augment import AugmentConfig, BatchAugmentation
from ..data.cache import cache_images
from ..data.config import DataConfig
from ..data.datasets import create_datasets
from ..data.loader import SplitLoader
from ..data.phantoms import write_phantoms
from ..distillation.losses import hdkd_loss
from ..distillation.task import HDKDTask
from ..evaluation.classifier import OnnxModel
from ..models.checkpoint import save_model
from ..models.hdkd import MIN_IMG_SIZE
from ..sharing.export import export_model, import_packages
from ..utils.config import check_values, setting
from ..utils.csv_files import write_rows
from ..utils.distributed import pick_device
from ..utils.memory import format_bytes, keep_freed_memory, kept_memory

PARTS = ('step', 'inference', 'epoch', 'growth')
FORMS = ('eager', 'fused', 'kept', 'compiled', 'onnx', 'int8')
MODELS = ('hdkd_teacher', 'hdkd_student', 'hdkd_student_plain', 'hdkd_teacher_s4', 'hdkd_student_s4')
OTHERS = ('mobilevit_s', 'tiny_vit_5m_224', 'levit_128', 'deit_tiny_distilled_patch16_224', 'efficientnet_b0')
STAGES = (1, 2, 3)
NUM_CLASSES = 7  # of our networks, as published
KEPT_CALLS = 2  # until no more memory is taken from the system
TURN_SECONDS = 0.3  # of a form that takes less, several calls are one turn

Row = Dict[str, Any]


@dataclasses.dataclass
class BenchConfig:
    """Settings of `run_benchmark`."""
    parts: Tuple[str, ...] = setting(PARTS, 'what to measure', choices=PARTS)
    img_size: int = setting(224, 'height and width in pixels', at_least=MIN_IMG_SIZE)
    batch_size: int = setting(8, 'images a training step', flags=('-b',), at_least=1)
    rounds: int = setting(5, 'turns of each form', at_least=1)
    models: Tuple[str, ...] = setting((*MODELS, *OTHERS), 'networks of the inference table, any of timm\'s')
    forms: Tuple[str, ...] = setting(FORMS, 'their forms', choices=FORMS)
    inference_batches: Tuple[int, ...] = setting((1, 8, 64), 'their batch sizes', at_least=1)
    growth_sizes: Tuple[int, ...] = setting(
        (112, 160, 224, 320, 448), 'image sizes of the growth table', at_least=MIN_IMG_SIZE)
    growth_batches: Tuple[int, ...] = setting((4, 8, 16, 32, 64), 'its batch sizes', at_least=1)
    data_dir: Optional[str] = setting(None, 'folder with train/<class>/* of the epochs (default: phantoms, drawn anew)')
    epoch_images: int = setting(128, 'number of these phantoms', at_least=8)
    compiled: bool = setting(True, 'also measure compiled networks')
    memory: bool = setting(True, 'also measure the peak memory of a step, in a process for each form')
    amp: bool = setting(True, 'also measure mixed precision (a CPU needs AMX or AVX-512 BF16 to gain by it)')
    amp_dtype: str = setting('bfloat16', 'lower precision of it', choices=('float16', 'bfloat16'))
    workers: int = setting(2, 'loader processes of the epochs', flags=('-j',), at_least=0)
    device: Optional[str] = setting(None, 'cpu, cuda, ... (default: the best there is)')
    out: str = setting('bench.csv', 'CSV file to write', metavar='FILE')

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        check_values(self)


@dataclasses.dataclass(frozen=True)
class StepForm:
    """How a training step is done."""
    again: bool = False  # the stages, for each of their maps
    channels_last: bool = False
    fused: bool = False  # the teacher
    kept: bool = False  # freed memory, see `keep_freed_memory`
    compiled: bool = False
    amp: bool = False


STEP_FORMS = {
    'stages again': StepForm(again=True),
    'one pass': StepForm(),
    '+ channels-last': StepForm(channels_last=True),
    '+ fused teacher': StepForm(channels_last=True, fused=True),
    '+ kept memory': StepForm(channels_last=True, fused=True, kept=True),
    '+ compiled': StepForm(channels_last=True, fused=True, kept=True, compiled=True),
    '+ mixed precision': StepForm(channels_last=True, fused=True, kept=True, compiled=True, amp=True),
}


def describe_machine(device: torch.device) -> str:
    """Processor or GPU, threads and versions, in words."""
    name = platform.processor() or platform.machine()
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    elif Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        name = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), name)
    return f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}'


def count_multiply_adds(name: str, img_size: int) -> Tuple[int, int]:
    """Parameters of a timm model, and multiply-adds of its convolutions and matrix products for one image."""
    was_fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)  # attention as matrix products, which every release of torch counts
    try:
        model = timm.create_model(name, **_size_args(name, img_size)).eval()
    finally:
        timm.layers.set_fused_attn(bool(was_fused))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, img_size, img_size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def _size_args(name: str, img_size: int) -> Dict[str, int]:
    """Arguments by which a timm model takes images of this size: those of fixed size are told it. Ours have the
    published number of classes."""
    if name.startswith('hdkd'):
        return dict(img_size=img_size, num_classes=NUM_CLASSES)
    return dict(img_size=img_size) if timm.get_pretrained_cfg(name).fixed_input_size else {}


# -- turns -------------------------------------------------------------------------------------------------------------

def _synchronize(device: torch.device) -> None:
    if device.type != 'cpu':
        torch.accelerator.synchronize()


def take_turns(
        forms: Dict[Any, Callable[[], Any]],
        rounds: int,
        device: torch.device,
        kept: Tuple[str, ...] = (),
) -> Dict[Any, float]:
    """Median seconds of a call of each form, all forms in turn, after two calls that do not count.

    Args:
        forms: Name -> what is called.
        rounds: Turns of each.
        device: Where they run.
        kept: Forms whose turns come last, while glibc keeps freed memory. Calls before it, that do not count, take it.
    """
    def call(form: Callable[[], Any], number: int = 1) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(number):
            form()
        _synchronize(device)
        return (time.perf_counter() - start) / number

    first = {name: [call(form), call(form)][1] for name, form in forms.items()}
    seconds: Dict[Any, List[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for names in ([name for name in forms if name not in kept], kept):
            with kept_memory(device) if names is kept and kept else nullcontext():
                for name in names:
                    for _ in range(KEPT_CALLS if names is kept else 0):
                        forms[name]()
                    seconds[name].append(call(forms[name], max(1, int(TURN_SECONDS / first[name]))))
    return {name: statistics.median(values) for name, values in seconds.items()}


# -- training steps ----------------------------------------------------------------------------------------------------

def _loss_with_stages_again(
        student: nn.Module,
        teacher: nn.Module,
        images: torch.Tensor,
        targets: torch.Tensor,
) -> torch.Tensor:
    """As the published loop computes it: logits by one pass, each map by another from the image up to its stage."""
    student.set_distilled_training(True)
    cls_logits, dist_logits = student(images)
    student.set_distilled_training(False)
    with torch.no_grad():
        teacher_logits = teacher(images)
    student_maps, teacher_maps = [], []
    for stage in STAGES:
        student_maps.append(student.stages[:stage](images))
        with torch.no_grad():
            teacher_maps.append(teacher.stages[:stage](images))
    return hdkd_loss(cls_logits, dist_logits, teacher_logits, targets, student_maps, teacher_maps)['loss']


def create_step(
        form: StepForm,
        batch_size: int,
        img_size: int,
        device: torch.device,
        amp_dtype: torch.dtype = torch.bfloat16,
) -> Callable[[], torch.Tensor]:
    """A training step of HDKD at full size: forward, loss, backward, AdamW. It returns the loss."""
    torch.manual_seed(0)
    args = dict(img_size=img_size, num_classes=NUM_CLASSES)
    teacher = timm.create_model('hdkd_teacher', **args).to(device).eval().requires_grad_(False)
    student = timm.create_model('hdkd_student', **args).to(device)
    images = torch.randn(batch_size, 3, img_size, img_size, device=device)
    targets = torch.randint(student.num_classes, (batch_size,), device=device)
    if form.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
        student.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
    if form.again:
        def compute_loss() -> torch.Tensor:
            return _loss_with_stages_again(student, teacher, images, targets)
    else:
        task = HDKDTask(student, teacher, verbose=False).to(device).train()
        if not form.fused:
            task.teacher = teacher
            if not form.channels_last:  # the task hands it images that are
                teacher.register_forward_pre_hook(lambda module, args: args[0].contiguous())
                forward_intermediates = teacher.forward_intermediates
                teacher.forward_intermediates = lambda x, *args: forward_intermediates(x.contiguous(), *args)
        if form.compiled:
            task.compile()

        def compute_loss() -> torch.Tensor:
            return task(images, targets)['loss']

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, amp_dtype, enabled=form.amp):
            loss = compute_loss()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _resident_bytes(key: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _measure_memory(form: StepForm, batch_size: int, img_size: int, device: torch.device, results: Any) -> None:
    """Bytes that a step takes at its peak on top of weights, gradients and optimiser; to a queue, from a process."""
    keep_freed_memory(form.kept)
    step = create_step(form, batch_size, img_size, device)
    step()
    step()
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        results.put(torch.cuda.max_memory_allocated() - before)
        return
    keep_freed_memory(False)  # gives back what was kept
    keep_freed_memory(form.kept)
    before = _resident_bytes('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    step()
    results.put(_resident_bytes('VmHWM') - before)


def measure_memory(form: StepForm, config: BenchConfig, device: torch.device) -> Optional[int]:
    """Peak memory of a step in a process of its own, on top of what is kept between steps; None where it isn't told."""
    if device.type != 'cuda' and not Path('/proc/self/clear_refs').exists():
        return None
    context = multiprocessing.get_context('spawn')
    results = context.SimpleQueue()
    process = context.Process(target=_measure_memory, args=(form, config.batch_size, config.img_size, device, results))
    process.start()
    process.join()
    return results.get() if process.exitcode == 0 else None


def measure_steps(config: BenchConfig, device: torch.device) -> List[Row]:
    """The HDKD step in all its forms, and student and teacher alone in the last one."""
    amp_dtype = getattr(torch, config.amp_dtype)
    has_kept = device.type == 'cpu' and keep_freed_memory(False)
    forms = {
        name: form for name, form in STEP_FORMS.items()
        if (config.compiled or not form.compiled) and (config.amp or not form.amp)
        and (has_kept or not form.kept or form.compiled)}
    steps = {
        name: create_step(form, config.batch_size, config.img_size, device, amp_dtype)
        for name, form in forms.items()}
    losses = {name: [float(step()) for _ in range(3)][-1] for name, step in steps.items()}
    expected = losses['stages again']
    for name, loss in losses.items():  # or there is nothing to compare
        if not abs(loss / expected - 1) < (5e-2 if forms[name].amp else 1e-3):
            raise RuntimeError(f"The loss of step '{name}' is {loss}, that of the step to compare it with {expected}.")
    best = list(forms.values())[-1]
    steps.update(_create_alone(best, config, device, amp_dtype))
    kept = tuple(name for name in steps if has_kept and forms.get(name, best).kept)
    seconds = take_turns(steps, config.rounds, device, kept)
    rows = []
    for name, value in seconds.items():
        memory = measure_memory(forms[name], config, device) if config.memory and name in forms else None
        rows.append(dict(
            part='step', name=name, img_size=config.img_size, batch_size=config.batch_size, ms=1000 * value,
            ratio=seconds['stages again'] / value, memory=memory))
    return rows


def _create_alone(
        form: StepForm,
        config: BenchConfig,
        device: torch.device,
        amp_dtype: torch.dtype,
) -> Dict[str, Callable[[], Any]]:
    """What no step of HDKD can do without: the student's own training step, and a pass of the fused teacher."""
    student = timm.create_model('hdkd_student', img_size=config.img_size, num_classes=NUM_CLASSES).to(device)
    teacher = reparameterize_model(timm.create_model('hdkd_teacher', num_classes=NUM_CLASSES).eval()).to(device)
    images = torch.randn(config.batch_size, 3, config.img_size, config.img_size, device=device)
    targets = torch.randint(student.num_classes, (config.batch_size,), device=device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
    images = images.contiguous(memory_format=torch.channels_last)
    forward_student, forward_teacher = (
        model.to(memory_format=torch.channels_last) for model in (student, teacher))
    if form.compiled:
        forward_student, forward_teacher = torch.compile(student), torch.compile(teacher)

    def train_student() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, amp_dtype, enabled=form.amp):
            loss = nn.functional.cross_entropy(forward_student(images), targets)
        loss.backward()
        optimizer.step()

    def run_teacher() -> None:
        with torch.no_grad(), torch.autocast(device.type, amp_dtype, enabled=form.amp):
            forward_teacher(images)

    return {'student alone': train_student, 'teacher alone': run_teacher}


# -- inference ---------------------------------------------------------------------------------------------------------

def create_inference(
        name: str,
        form: str,
        img_size: int,
        device: torch.device,
        amp_dtype: Optional[torch.dtype] = None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A timm model with random weights in one of `FORMS`: all but 'eager' are fused, those of PyTorch channels-last."""
    torch.manual_seed(0)
    model = timm.create_model(name, **_size_args(name, img_size)).eval()
    if form in ('onnx', 'int8'):
        return _export(model, form == 'int8', img_size)
    model = model.to(device)
    if form != 'eager':
        model = reparameterize_model(model).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if form == 'compiled' else model

    def infer(x: torch.Tensor) -> torch.Tensor:
        if form != 'eager':
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, amp_dtype) if amp_dtype else nullcontext():
            return forward(x)

    return infer


def _export(model: nn.Module, int8: bool, img_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder), Path(folder) / 'images'
        save_model(model, path / 'model', model_args=dict(num_classes=model.num_classes))
        write_phantoms(images, num_train=2, num_test=1, size=img_size)
        export_model(
            str(path / 'model'), path / 'model.onnx', int8=int8, calibration=[str(images)] if int8 else (),
            img_size=img_size)
        return OnnxModel(path / 'model.onnx')


def measure_inference(config: BenchConfig, device: torch.device) -> Iterator[Row]:
    """Images a second of each network, form and batch size."""
    for name in config.models:
        parameters, multiply_adds = count_multiply_adds(name, config.img_size)
        forms = [form for form in config.forms if device.type == 'cpu' or form not in ('kept', 'onnx', 'int8')]
        if not keep_freed_memory(False):
            forms = [form for form in forms if form != 'kept']
        infer = {form: create_inference(name, form, config.img_size, device) for form in forms}
        if config.amp:
            infer.update({
                f'{form}, {config.amp_dtype}': create_inference(
                    name, form, config.img_size, device, getattr(torch, config.amp_dtype))
                for form in ('fused', 'compiled') if form in forms})
        for batch_size in config.inference_batches:
            torch.compiler.reset()  # for a graph of this batch size alone
            x = torch.randn(batch_size, 3, config.img_size, config.img_size, device=device)
            seconds = take_turns(
                {form: (lambda call=call, x=x: call(x)) for form, call in infer.items()}, config.rounds, device,
                kept=tuple({'kept'} & set(infer)))
            slowest = seconds.get('eager', max(seconds.values()))
            for form, value in seconds.items():
                yield dict(
                    part='inference', name=name, form=form, img_size=config.img_size, batch_size=batch_size,
                    ms=1000 * value, images_per_second=batch_size / value, ratio=slowest / value,
                    parameters=parameters, multiply_adds=multiply_adds)


# -- epochs ------------------------------------------------------------------------------------------------------------

def measure_epochs(config: BenchConfig, device: torch.device) -> List[Row]:
    """Images a second of an epoch of training: of steps on one batch, and with batches from files."""
    form = StepForm(
        channels_last=True, fused=True, compiled=device.type != 'cpu' and config.compiled, amp=device.type != 'cpu')
    amp_dtype = getattr(torch, config.amp_dtype)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = config.data_dir
        if data_dir is None:
            data_dir = str(Path(folder) / 'phantoms')
            write_phantoms(data_dir, num_train=max(2, config.epoch_images // 4), num_test=1, size=config.img_size)
        datasets, classes = create_datasets(DataConfig(data_dir=data_dir), only='train')
        dataset, args = datasets['train'], dict(img_size=config.img_size, num_classes=len(classes))
        torch.manual_seed(0)
        teacher = timm.create_model('hdkd_teacher', **args)
        student = timm.create_model('hdkd_student', **args)
        task = HDKDTask(student, teacher, verbose=False).to(device).train()
        task.trainable_module.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
        data_config = timm.data.resolve_data_config(
            dict(input_size=(3, config.img_size, config.img_size)), model=student)
        if form.compiled:
            task.compile()

        def step(images: torch.Tensor, targets: torch.Tensor) -> None:
            optimizer.zero_grad()
            with torch.autocast(device.type, amp_dtype, enabled=form.amp):
                loss = task(images.contiguous(memory_format=torch.channels_last), targets)['loss']
            loss.backward()
            optimizer.step()

        def load(cached: bool = False, **augment: Any) -> SplitLoader:
            return SplitLoader(
                dataset, data_config, config.batch_size, AugmentConfig(aug='paper', **augment), config.workers, device,
                cache=(lambda data, front: cache_images(data, front, 'ram', Path(folder), "split 'train'"))
                if cached else None)

        loaders = {'files': load(), 'files, cached': load(True)}
        if device.type != 'cpu':
            loaders['files, cached, augmented on the device'] = load(True, aug_device=True)
        batch = next(iter(loaders['files'].epoch(0)))
        number = len(loaders['files'])
        epochs: Dict[str, Callable[[], None]] = {'one batch': lambda: [step(*batch) for _ in range(number)]}
        for name, loader in loaders.items():
            config_of = AugmentConfig(aug='paper', aug_device='device' in name)
            epochs[name] = _create_epoch(
                loader, step, BatchAugmentation(config_of, len(classes), device, loader.mean, loader.std))
        with kept_memory(device):  # as the trainer does
            seconds = take_turns(epochs, config.rounds, device)
    return [dict(
        part='epoch', name=name, img_size=config.img_size, batch_size=config.batch_size, ms=1000 * value / number,
        images_per_second=number * config.batch_size / value, ratio=value / seconds['one batch'])
        for name, value in seconds.items()]


def _create_epoch(loader: SplitLoader, step: Callable, augment: Callable) -> Callable[[], None]:
    def run() -> None:
        for batch in loader.epoch(0):
            step(*augment(*batch, 0))
    return run


# -- growth ------------------------------------------------------------------------------------------------------------

def measure_growth(config: BenchConfig, device: torch.device) -> List[Row]:
    """Time of a step by image size and batch size; the ratio is that of the times an image and pixel."""
    form = StepForm(channels_last=True, fused=True, kept=True, amp=device.type != 'cpu')
    rows = []
    for sizes, batches in ((config.growth_sizes, (config.batch_size,)), ((config.img_size,), config.growth_batches)):
        cases = [(size, batch) for size in sizes for batch in batches]
        with kept_memory(device):
            seconds = take_turns({
                (size, batch): create_step(form, batch, size, device, getattr(torch, config.amp_dtype))
                for size, batch in cases}, config.rounds, device)
        per_pixel = {case: value / (case[0] ** 2 * case[1]) for case, value in seconds.items()}
        middle = statistics.median(per_pixel.values())
        rows.extend(dict(
            part='growth', name='image size' if len(sizes) > 1 else 'batch size', img_size=size, batch_size=batch,
            ms=1000 * seconds[size, batch], images_per_second=batch / seconds[size, batch],
            ratio=per_pixel[size, batch] / middle) for size, batch in cases)
    return rows


# -- all ---------------------------------------------------------------------------------------------------------------

MEASURES = dict(step=measure_steps, inference=measure_inference, epoch=measure_epochs, growth=measure_growth)
COLUMNS = {
    'step': ('name', 'ms', 'ratio', 'memory'),
    'inference': ('name', 'parameters', 'multiply_adds', 'batch_size', 'form', 'images_per_second', 'ratio'),
    'epoch': ('name', 'images_per_second', 'ratio'),
    'growth': ('name', 'img_size', 'batch_size', 'ms', 'ratio'),
}
HEADS = {
    'step': 'A training step, {batch_size} images of {img_size} px (ratio: how many times as fast as the first)',
    'inference': 'Inference at {img_size} px (ratio: how many times as fast as eager)',
    'epoch': 'An epoch of training, steps of {batch_size} images of {img_size} px (ratio: time over that of the first)',
    'growth': 'A training step by size (ratio: time an image and pixel over the median of these)',
}


def _format(column: str, value: Any) -> str:
    if value is None:
        return '-'
    if column == 'memory':
        return format_bytes(value)
    if column == 'multiply_adds':
        return f'{value / 1e9:.3f} G'
    if column in ('ms', 'images_per_second'):
        return f'{value:.1f}'
    if column == 'ratio':
        return f'{value:.2f}'
    return f'{value:,}' if isinstance(value, int) else str(value)


def format_rows(rows: List[Row], part: str) -> str:
    """The rows of a part as a Markdown table."""
    columns = COLUMNS[part]
    lines = [
        '| ' + ' | '.join(name.replace('_', ' ') for name in columns) + ' |',
        '|' + '|'.join('---' if name in ('name', 'form') else '---:' for name in columns) + '|']
    lines += ['| ' + ' | '.join(_format(c, row.get(c)) for c in columns) + ' |' for row in rows if row['part'] == part]
    return '\n'.join(lines)


def run_benchmark(config: BenchConfig, report: Callable[[str], None] = print) -> List[Row]:
    """Measure what the settings say, report each table as it is done, and write the rows into a CSV file.

    Returns:
        A row for each form: 'part', 'name', 'ms' a step or batch, 'ratio' and more, see `COLUMNS`.

    Raises:
        FileExistsError: if the CSV file exists.
        FileNotFoundError: if its folder does not.
        ImportError: without the packages of forms 'onnx' and 'int8'.
        ValueError: for an unknown model.
    """
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"'{out}' exists already: choose another --out, nothing is overwritten.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"Folder '{out.parent}' of --out does not exist.")
    for name in config.models:
        if not timm.is_model(name):
            raise ValueError(f"Unknown model '{name}' in --models: choose timm's or {', '.join(MODELS)}.")
    device = pick_device(config.device)
    if 'inference' in config.parts and device.type == 'cpu' and {'onnx', 'int8'} & set(config.forms):
        import_packages('onnx')
    machine = describe_machine(device)
    report(machine)
    rows: List[Row] = []
    for part in config.parts:
        for row in MEASURES[part](config, device):
            rows.append(dict(row, machine=machine))
            write_rows(rows, out)  # what was measured is kept if something later fails
        report(f'\n{HEADS[part].format(**vars(config))}\n\n{format_rows(rows, part)}')
    return rows
