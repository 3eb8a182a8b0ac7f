"""Parameters and multiply-adds of the models, as in the README: python examples/model_table.py [--img-size N]"""

import argparse

from hdkd_timm.benchmark.config import MODELS
from hdkd_timm.benchmark.inference import count_multiply_adds

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--img-size', type=int, default=224)
args = parser.parse_args()

print('| model | parameters | multiply-adds |')
print('|---|---:|---:|')
for name in MODELS:
    parameters, multiply_adds = count_multiply_adds(name, args.img_size)
    print(f'| `{name}` | {parameters:,} | {multiply_adds / 1e9:.3f} G |')
