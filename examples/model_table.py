"""Parameters and multiply-adds of the models, the table of the README: python examples/model_table.py [--img-size N]"""
import argparse

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import hdkd_timm  # noqa: F401

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--img-size', type=int, default=224)
args = parser.parse_args()

timm.layers.set_fused_attn(False)  # as matrix products, which every release of torch counts
print('| model | parameters | multiply-adds |')
print('|---|---:|---:|')
for name in ('hdkd_teacher', 'hdkd_student', 'hdkd_student_plain', 'hdkd_teacher_s4', 'hdkd_student_s4'):
    model = timm.create_model(name, img_size=args.img_size).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, args.img_size, args.img_size))
    parameters = sum(p.numel() for p in model.parameters())
    print(f'| `{name}` | {parameters:,} | {counter.get_total_flops() / 2e9:.3f} G |')
