"""One training step of HDKD beside one that runs the stages again for every map, as the published loop does.

    python examples/step_benchmark.py [--batch-size 8] [--img-size 224] [--steps 5] [--device cpu]

Both networks full size, float32; each step is forward, loss, backward and AdamW. The two take turns in one process, so
that a busy machine slows both; the ratio is that of the median times.

The second does 2.5 times the operations and keeps more maps for the backward pass. On a CPU its time also hangs on the
memory allocator: glibc gives the memory of large maps back and asks for it again at each step, unless it is told to
keep it, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 before the command.
"""
import argparse
import statistics
import time

import timm
import torch

from hdkd_timm import HDKDTask, hdkd_loss

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('--batch-size', type=int, default=8)
parser.add_argument('--img-size', type=int, default=224)
parser.add_argument('--steps', type=int, default=5, help='timed steps of each, after one that is not')
parser.add_argument('--device', default='cpu')
args = parser.parse_args()

torch.manual_seed(0)
device = torch.device(args.device)
teacher = timm.create_model('hdkd_teacher', img_size=args.img_size).to(device)
student = timm.create_model('hdkd_student', img_size=args.img_size).to(device)
task = HDKDTask(student, teacher, verbose=False).to(device).train()
optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
targets = torch.randint(student.num_classes, (args.batch_size,), device=device)


def loss_in_one_pass():
    return task(images, targets)['loss']


def loss_with_stages_again():
    student.set_distilled_training(True)
    cls_logits, dist_logits = student(images)
    student.set_distilled_training(False)
    with torch.no_grad():
        teacher_logits = teacher(images)
    student_maps, teacher_maps = [], []
    for stage in (1, 2, 3):
        student_maps.append(student.stages[:stage](images))
        with torch.no_grad():
            teacher_maps.append(teacher.stages[:stage](images))
    return hdkd_loss(cls_logits, dist_logits, teacher_logits, targets, student_maps, teacher_maps)['loss']


def time_step(compute_loss):
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    optimizer.zero_grad()
    compute_loss().backward()
    optimizer.step()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


losses = [compute_loss().item() for compute_loss in (loss_in_one_pass, loss_with_stages_again)]
assert abs(losses[0] / losses[1] - 1) < 1e-4, losses  # the same loss, or there is nothing to compare
times = {loss_in_one_pass: [], loss_with_stages_again: []}
for _ in range(args.steps + 1):
    for compute_loss, seconds in times.items():
        seconds.append(time_step(compute_loss))
one, again = (statistics.median(seconds[1:]) for seconds in times.values())
print(f'one pass {one * 1000:.0f} ms, stages again {again * 1000:.0f} ms, ratio {again / one:.2f}'
      f' (batch {args.batch_size}, {args.img_size} px, {device}, {torch.get_num_threads()} threads)')
