"""Fine-tune a student on other classes with plain PyTorch and timm.

    python examples/finetune.py MODEL DATA_DIR [--epochs N] [--layer-decay D] [--out FOLDER]

MODEL is the name of released weights, such as hdkd_student, or a model folder, such as runs/<name>/student/best of
`hdkd distill`; DATA_DIR holds train/<class>/* and test/<class>/*. The heads are new, for the classes of DATA_DIR;
layer-wise learning rate decay lets earlier layers learn more slowly. `hdkd train --model hdkd_student --pretrained`, or
`--model local-dir:FOLDER`, does the same, with everything else that a training needs.
"""

import argparse
import os

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.nn import functional as F

import hdkd_timm  # noqa: F401
from hdkd_timm.models.checkpoint import save_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('model')
parser.add_argument('data_dir')
parser.add_argument('--epochs', type=int, default=10)
parser.add_argument('--batch-size', type=int, default=16)
parser.add_argument('--lr', type=float, default=5e-4)
parser.add_argument('--layer-decay', type=float, default=0.8)
parser.add_argument('--workers', type=int, default=2)
parser.add_argument('--out', help='model folder to write')
args = parser.parse_args()

device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
datasets = {split: create_dataset('', root=args.data_dir, split=split) for split in ('train', 'test')}
classes = list(datasets['train'].reader.class_to_idx)
name = f'local-dir:{args.model}' if os.path.isdir(args.model) else args.model
model = timm.create_model(name, pretrained=True, num_classes=len(classes)).to(device)
data_config = resolve_data_config(model=model)
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

optimizer = create_optimizer_v2(model, opt='adamw', lr=args.lr, weight_decay=0.05, layer_decay=args.layer_decay)
scheduler, _ = create_scheduler_v2(optimizer, sched='cosine', num_epochs=args.epochs)
for epoch in range(args.epochs):
    model.train()
    for images, targets in loaders['train']:
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step(epoch + 1)
    print(f'epoch {epoch + 1}/{args.epochs}  loss of last batch {loss.item():.4f}')

model.eval()
with torch.inference_mode():
    correct = sum((model(images).argmax(dim=1) == targets).sum().item() for images, targets in loaders['test'])
print(f'test accuracy {correct / len(datasets["test"]):.1%}')
if args.out:
    save_model(model, args.out, label_names=classes)
