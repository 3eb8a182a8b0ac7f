"""Time of a training step with a running teacher and with its stored logits: `python docs/teacher_step.py`.

hdkd_teacher teaches hdkd_student by the method 'kd', both at 64 px. The two kinds of steps alternate, so that whatever
else the machine does slows both, and the ratio is of one run.
"""

import statistics
import time

import timm
import torch

import hdkd_timm  # noqa: F401  # registers the models
from hdkd_timm.distillation.task import DistillationTask
from hdkd_timm.distillation.teacher import StoredLogits

SIZE, BATCH, CLASSES, ROUNDS = 64, 16, 7, 15


def time_step(task: DistillationTask, images: torch.Tensor, target: torch.Tensor) -> float:
    """Seconds of forward and backward pass and update of a step."""
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)
    start = time.perf_counter()
    task(images, target, torch.arange(len(images)))['loss'].backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    student, teacher = (
        timm.create_model(name, num_classes=CLASSES, img_size=SIZE) for name in ('hdkd_student', 'hdkd_teacher')
    )
    stored = StoredLogits(torch.randn(1, 1, BATCH, CLASSES).half())
    tasks = {
        name: DistillationTask(student, source, ['kd'], verbose=False).train()
        for name, source in (('running', teacher), ('stored', stored))
    }
    images, target = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(CLASSES, (BATCH,))
    seconds = {name: [] for name in tasks}
    for _ in range(ROUNDS + 2):
        for name, task in tasks.items():
            seconds[name].append(time_step(task, images, target))
    running, saved = (statistics.median(values[2:]) for values in seconds.values())
    print(
        f'{torch.get_num_threads()} thread(s): {running:.3f} s with the teacher, {saved:.3f} s with stored logits,'
        f' ratio {running / saved:.2f}'
    )


if __name__ == '__main__':
    main()
