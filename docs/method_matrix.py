"""Which distillation method works for which pair of networks: one training step of each on random images.

python docs/method_matrix.py    # writes docs/tables/method_matrix.csv and updates docs/methods/index.md
"""

import csv
import re
from pathlib import Path

import timm
import torch

from hdkd_timm import DistillationTask
from hdkd_timm.distillation.methods import METHODS

TEACHERS = ('resnet18', 'tf_efficientnet_lite0', 'vit_tiny_patch16_224', 'hdkd_teacher')
STUDENTS = ('hdkd_student', 'hdkd_student_s4', 'mobilevit_xxs', 'deit_tiny_distilled_patch16_224')
SIZE, CLASSES = 64, 4
FOLDER = Path(__file__).parent
MARKS = ('<!-- matrix -->', '<!-- end of matrix -->')


def create(name: str) -> torch.nn.Module:
    fixed = name.startswith(('hdkd_', 'vit_', 'deit_'))
    return timm.create_model(name, num_classes=CLASSES, **(dict(img_size=SIZE) if fixed else {}))


def try_method(student: str, teacher: str, method: str) -> str:
    """'' if a training step gives finite gradients to the student, else the error."""
    target = torch.arange(8) % CLASSES
    try:
        task = DistillationTask(
            create(student), create(teacher), [method], input_size=(SIZE, SIZE), train_targets=target, verbose=False
        ).train()
    except ValueError as e:
        return str(e)
    result = task(torch.randn(8, 3, SIZE, SIZE), target, torch.arange(8))
    result['loss'].backward()
    grads = [p.grad for p in task.trainable_module.parameters() if p.grad is not None]
    assert grads, (student, teacher, method)
    assert all(grad.isfinite().all() for grad in grads), (student, teacher, method)
    return ''


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for teacher in TEACHERS:
        for student in STUDENTS:
            rows += [(teacher, student, method, try_method(student, teacher, method)) for method in METHODS]
            print(teacher, student, *(method for _, s, method, e in rows[-len(METHODS) :] if e), sep='  ')
    with (FOLDER / 'tables' / 'method_matrix.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['teacher', 'student', 'method', 'error'])
        writer.writerows(rows)
    lines = ['| teacher | student | trains | does not |', '| --- | --- | --- | --- |']
    for teacher in TEACHERS:
        for student in STUDENTS:
            of_pair = [row for row in rows if row[:2] == (teacher, student)]
            lists = (', '.join(f'`{row[2]}`' for row in of_pair if bool(row[3]) is failed) for failed in (False, True))
            lines.append(f'| {teacher} | {student} | {" | ".join(text or "–" for text in lists)} |')
    page = FOLDER / 'methods' / 'index.md'
    text = page.read_text()
    block = '\n'.join([MARKS[0], '', *lines, '', MARKS[1]])
    page.write_text(re.sub(f'{MARKS[0]}.*?{MARKS[1]}', lambda match: block, text, flags=re.S))


if __name__ == '__main__':
    main()
