"""Distil a trained teacher into a student with the Python API, in your own training loop.

    python examples/distill.py TEACHER_FOLDER DATA_DIR [--epochs N] [--img-size PX] [--out FOLDER]

TEACHER_FOLDER is a model folder, such as runs/<name>/best of `hdkd train --model hdkd_teacher`; DATA_DIR holds
train/<class>/* and test/<class>/* of the teacher's classes. `HDKDTask` contains all of HDKD: one forward pass of each
network, the loss and its parts. `hdkd distill --teacher-checkpoint TEACHER_FOLDER` does the same, with everything else
that a training needs.
"""

import argparse

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from hdkd_timm import HDKDTask
from hdkd_timm.models.checkpoint import save_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('teacher_folder')
parser.add_argument('data_dir')
parser.add_argument('--student', default='hdkd_student')
parser.add_argument('--epochs', type=int, default=25)
parser.add_argument('--batch-size', type=int, default=16)
parser.add_argument('--img-size', type=int, default=224)
parser.add_argument('--lr', type=float, default=1e-3)
parser.add_argument('--workers', type=int, default=2)
parser.add_argument('--out', help='model folder to write')
args = parser.parse_args()

device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
torch.manual_seed(0)
datasets = {split: create_dataset('', root=args.data_dir, split=split) for split in ('train', 'test')}
classes = list(datasets['train'].reader.class_to_idx)
teacher = timm.create_model(f'local-dir:{args.teacher_folder}', pretrained=True)
student = timm.create_model(
    args.student,
    num_classes=len(classes),
    img_size=args.img_size,
    **{name: value for name, value in getattr(teacher, '_model_args', {}).items() if name in ('dims', 'in_chans')},
)
task = HDKDTask(student, teacher, kind='soft', alpha=0.5, tau=1.0, feature_weight=10.0, stages=(1, 2, 3)).to(device)

data_config = resolve_data_config(dict(input_size=(3, args.img_size, args.img_size)), model=student)
loaders = {
    split: create_loader(
        dataset,
        batch_size=args.batch_size,
        is_training=split == 'train',
        num_workers=args.workers,
        device=device,
        scale=(0.8, 1.0),
        vflip=0.5,
        **data_config,
    )
    for split, dataset in datasets.items()
}
optimizer = create_optimizer_v2(student, opt='adamw', lr=args.lr, weight_decay=0.05)
scheduler, _ = create_scheduler_v2(optimizer, sched='cosine', num_epochs=args.epochs, warmup_epochs=args.epochs // 5)

for epoch in range(args.epochs):
    task.train()
    for images, targets in loaders['train']:
        result = task(images, targets)  # 'loss', 'output', 'ce_loss', 'kd_loss', 'feature_loss_1', ...
        optimizer.zero_grad()
        result['loss'].backward()
        optimizer.step()
    scheduler.step(epoch + 1)
    parts = '  '.join(f'{name} {value.item():.4f}' for name, value in result.items() if name != 'output')
    print(f'epoch {epoch + 1}/{args.epochs}  last batch: {parts}')

student.eval()
with torch.inference_mode():
    correct = sum((student(images).argmax(dim=1) == targets).sum().item() for images, targets in loaders['test'])
print(f'test accuracy {correct / len(datasets["test"]):.1%}')
if args.out:
    save_model(student, args.out, label_names=classes)
