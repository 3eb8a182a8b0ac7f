"""One of two processes that train with CRD, `crd_process.py RANK FOLDER`: its memory before and after each step."""

import datetime
import sys

import torch
import torch.distributed as dist
from pair_helpers import create_task

TARGETS = torch.arange(20) % 5
BATCHES = ([[0, 2], [1, 0]], [[4, 5], [6, 7]], [[8, 9], [10, 11]])  # of both; image 0 is twice in the first


def train(rank, folder):
    """Without DDP, which would tell all processes of the first one's memory, and in the last step with it."""
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/store',
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=200),
    )
    try:
        torch.manual_seed(rank)
        task = create_task('crd', train_targets=TARGETS, k=8)
        state = task.trainable_module.methods['crd'].state_dict()
        memory = {name: value for name, value in state.items() if not name.startswith('embed')}
        saved = [{name: value.clone() for name, value in memory.items()}]
        for batch in BATCHES:
            if batch is BATCHES[-1]:
                task.prepare_distributed()
            index = torch.tensor(batch[rank])
            task(torch.randn(2, 3, 32, 32), TARGETS[index], index)['loss'].backward()
            saved.append({name: value.clone() for name, value in memory.items()})
        torch.save(saved, f'{folder}/memory{rank}.pt')
    finally:
        dist.destroy_process_group()


if __name__ == '__main__':
    train(int(sys.argv[1]), sys.argv[2])
