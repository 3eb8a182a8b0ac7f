"""Two real processes train from stored logits as with the teacher that they are of."""

import csv

import pytest
from helpers import write_images
from processes import TORCHRUN, flags, run_two
from training_helpers import STUDENT, save_teacher

from hdkd_timm.cli import main


def test_two_processes(tmp_path):
    write_images(tmp_path / 'data' / 'train', number=8)
    write_images(tmp_path / 'data' / 'test', number=2, seed=1)
    save_teacher(tmp_path / 'given')
    path = tmp_path / 'logits.safetensors'
    shared = flags(data_dir=tmp_path / 'data', img_size=32, device='cpu', workers=0, batch_size=4, model_kwargs=STUDENT)
    teacher = flags(teacher_checkpoint=tmp_path / 'given')
    assert main(['cache-logits', *shared, *teacher, *flags(views=2, out=path)]) == 0
    training = flags(output=tmp_path / 'runs', method='kd', epochs=2, bootstrap=0, no_report=True)
    losses = {}
    for name, source in (('running', teacher), ('stored', flags(teacher_logits=path))):
        args = ['-m', 'hdkd_timm', 'distill', *shared, *training, *source, '--experiment', name]
        codes, _, errors = run_two(TORCHRUN, args)
        assert codes == [0, 0], errors
        with (tmp_path / 'runs' / name / 'student' / 'summary.csv').open() as file:
            losses[name] = [float(row['train_kd_loss']) for row in csv.DictReader(file)]
    assert losses['stored'] == pytest.approx(losses['running'], rel=3e-3)
    assert losses['stored'][0] != losses['stored'][1]
