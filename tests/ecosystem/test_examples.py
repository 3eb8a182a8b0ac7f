"""The examples that need other libraries: examples/segmentation.py and examples/lightning_module.py."""

import csv
import os
import re
import runpy

import lightning
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from helpers import TINY_TEACHER, create_student, create_teacher, write_images
from PIL import Image
from processes import flags, run
from snippets import ECOSYSTEM, ROOT

from hdkd_timm import predict
from hdkd_timm.data.phantoms import KINDS
from hdkd_timm.models.checkpoint import save_model

SEGMENTATION, LIGHTNING = ROOT / 'examples' / 'segmentation.py', ROOT / 'examples' / 'lightning_module.py'


def run_example(path, *args):
    return run(path, *args, env=dict(os.environ, CUDA_VISIBLE_DEVICES=''))


def read_csv(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


# -- segmentation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def segmentation():
    return runpy.run_path(str(SEGMENTATION))


def test_dice_scores(segmentation):
    target = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[0, 0, 0], [0, 1, 0]], [[0, 0, 0]] * 2, [[0, 0, 0]] * 2]).bool()
    predicted = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]], [[0, 0, 0]] * 2, [[0, 0, 1]] * 2]).bool()
    scores = segmentation['dice_scores'](predicted, target)
    torch.testing.assert_close(scores, torch.tensor([2 * 2 / (4 + 3), 0, 1, 0]))


def test_colours_of_masks(segmentation):
    """White is right, orange too much, blue missed."""
    picture = segmentation['paint'](np.array([[True, True], [False, False]]), np.array([[True, False], [True, False]]))
    assert picture.tolist() == [[[255, 255, 255], [230, 159, 0]], [[0, 114, 178], [0, 0, 0]]]


def test_phantoms_of_the_segmentation_example(segmentation):
    mean, std = (0.1, 0.2, 0.3), (0.5, 1, 2)
    train, test = (segmentation['Phantoms'](8, 64, seed, mean, std) for seed in (0, 1))
    assert [train.kind(i) for i in range(8)] == [*KINDS, *KINDS]
    for i in range(8):
        (image, mask), (grey, drawn) = train[i], train.draw(i)
        assert (image.shape, mask.shape, image.dtype, mask.dtype) == ((3, 64, 64), (1, 64, 64), *[torch.float32] * 2)
        for channel, a, b in zip(image, mean, std, strict=True):
            np.testing.assert_allclose(channel * b + a, grey / 255, atol=1e-6)
        assert np.array_equal(mask[0], drawn)
        assert (train.kind(i) == 'clear') == (not drawn.any())
        assert not np.array_equal(grey, test.draw(i)[0])


def test_starts_of_the_segmentation_example(segmentation):
    released = timm.create_model('hdkd_student.brain_mri', pretrained=True).state_dict()['blocks.0.attn.qkv.weight']
    for start in segmentation['STARTS']:
        weights = segmentation['create_unet'](start).encoder.model.state_dict()
        name = next(name for name in weights if name.endswith('blocks.0.attn.qkv.weight'))
        assert torch.equal(weights[name], released) == (start == 'released')


def test_segmentation_example(segmentation, tmp_path):
    out = tmp_path / 'out'
    settings = dict(epochs=2, img_size=32, train_images=8, test_images=5, batch_size=4)
    result = run_example(SEGMENTATION, *flags(**settings, out=out))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ['dice.csv', 'examples.png', 'random', 'released']
    rows = read_csv(out / 'dice.csv')
    assert [row['kind'] for row in rows] == [*KINDS, KINDS[0]]

    for start in segmentation['STARTS']:
        model = smp.from_pretrained(out / start)
        data_config = timm.data.resolve_model_data_config(model.encoder.model)
        dataset = segmentation['Phantoms'](5, 32, 1, data_config['mean'], data_config['std'])
        predicted, masks = segmentation['predict'](model, dataset, 5, torch.device('cpu'))
        scores = segmentation['dice_scores'](predicted, masks)
        np.testing.assert_allclose(scores, [float(row[start]) for row in rows], atol=1e-4)
        printed = re.search(rf'(?m)^{start} +\S+ +\S+ +\S+ +\S+ +(\S+) +\d+ s$', result.stdout)[1]
        assert float(printed) == pytest.approx(scores.mean().item(), abs=1e-3)
    assert result.stdout.splitlines()[-4] in (ECOSYSTEM / 'segmentation.md').read_text(encoding='utf-8').splitlines()
    with Image.open(out / 'examples.png') as picture:
        assert picture.getcolors(2**24)[0][0] < picture.width * picture.height  # more than one colour

    again = run_example(SEGMENTATION, *flags(**settings, out=out))
    assert again.returncode == 2
    assert f"--out '{out}' already exists" in again.stderr


@pytest.mark.parametrize(
    ('settings', 'message'), [(dict(img_size=40), 'multiple of 16, .* got 40'), (dict(epochs=0), 'at least 1, got 0')]
)
def test_settings_of_the_segmentation_example(settings, message, tmp_path):
    result = run_example(SEGMENTATION, *flags(**settings, out=tmp_path / 'out'))
    assert result.returncode == 2
    assert re.search(message, result.stderr)
    assert not (tmp_path / 'out').exists()


# -- Lightning ---------------------------------------------------------------------------------------------------------


class StopAfter(lightning.Callback):
    """Stops a training after some epochs, as an interruption does."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


@pytest.fixture
def setup(tmp_path):
    """The functions of the example, and its arguments."""
    for split, number in (('train', 9), ('test', 3)):
        write_images(tmp_path / 'data' / split, number=number, seed=len(split))
    model_args = dict(TINY_TEACHER, num_classes=3)
    save_model(timm.create_model('hdkd_teacher', **model_args), tmp_path / 'teacher', list('abc'), model_args)
    settings = dict(epochs=3, batch_size=8, img_size=32, val_fraction=0.34, workers=0, out=tmp_path / 'out')
    return runpy.run_path(str(LIGHTNING)), list(map(str, [tmp_path / 'teacher', tmp_path / 'data', *flags(**settings)]))


def create_module(example, words):
    args = example['parse_args'](words)
    student, teacher = example['create_networks'](args)
    loaders, classes = example['create_loaders'](args, student, teacher)
    module = example['Distillation'](student, teacher, args.method, args.lr, args.weight_decay)
    return module, loaders, classes, args


def read_learning_rate(checkpoint):
    return torch.load(checkpoint, weights_only=False)['optimizer_states'][0]['param_groups'][0]['lr']


def test_lightning_example(setup, tmp_path):
    example, words = setup
    out = tmp_path / 'out'
    module, loaders, classes, args = create_module(example, words)
    assert {split: len(loader.dataset) for split, loader in loaders.items()} == {'train': 18, 'val': 9, 'test': 9}
    trainer = example['create_trainer'](args)
    trainer.callbacks.append(StopAfter(2))
    trainer.fit(module, loaders['train'], loaders['val'])
    rates = timm.scheduler.CosineLRScheduler(torch.optim.SGD([torch.zeros(1)], lr=args.lr), t_initial=3, lr_min=0)
    assert read_learning_rate(out / 'checkpoints' / 'last.ckpt') == pytest.approx(rates._get_lr(2)[0])

    result = run_example(LIGHTNING, *words, '--resume')
    assert result.returncode == 0, result.stderr
    assert read_learning_rate(out / 'checkpoints' / 'last.ckpt') == pytest.approx(rates._get_lr(3)[0])
    epochs = [[row['epoch'] for row in read_csv(out / 'logs' / f'version_{i}' / 'metrics.csv')] for i in range(2)]
    assert [sorted(set(of_run)) for of_run in epochs] == [['0', '1'], ['2', '3']]  # 3: the test

    best = torch.load(out / 'checkpoints' / 'best.ckpt', weights_only=False)['state_dict']
    assert not any(name.startswith('task.teachers') for name in best)
    module.load_state_dict(best)
    with torch.inference_mode():
        logits, targets = zip(*((module.eval()(images), targets) for images, targets in loaders['test']))
    probs, targets = torch.cat(logits).softmax(dim=1).numpy(), torch.cat(targets).numpy()
    files, predicted, names = predict(out / 'student', [tmp_path / 'data' / 'test'])
    assert files == loaders['test'].dataset.samples.filenames()
    assert names == classes == list('abc')
    np.testing.assert_allclose(predicted, probs, atol=1e-5)

    (tested,) = (
        value
        for row in read_csv(out / 'logs' / 'version_1' / 'metrics.csv')
        if (value := row['test_balanced_accuracy'])
    )
    recalls = [(probs.argmax(axis=1) == k)[targets == k].mean() for k in range(3)]
    assert float(tested) == pytest.approx(np.mean(recalls), abs=1e-6)


def test_lightning_example_overwrites_nothing(setup, tmp_path, capsys):
    example, words = setup
    with pytest.raises(SystemExit):
        example['parse_args']([*words, '--resume'])
    assert f"there is no '{tmp_path}/out/checkpoints/last.ckpt'" in capsys.readouterr().err
    for folder, message in (('checkpoints', 'already exists'), ('student', 'holds a finished training')):
        (tmp_path / 'out' / folder).mkdir(parents=True)
        with pytest.raises(SystemExit):
            example['parse_args'](words)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['--batch-size', '32'], '--batch-size 32: there are only 18 training images'),
        (['--val-fraction', '0'], r"has no split 'val' \(found: train, test\)"),
    ],
)
def test_data_of_the_lightning_example(setup, change, message):
    example, words = setup
    with pytest.raises(ValueError, match=message):
        create_module(example, [*words, *change])


def test_classes_of_the_lightning_example(setup, tmp_path):
    example, words = setup
    (tmp_path / 'data' / 'train' / 'a').rename(tmp_path / 'data' / 'train' / 'x')
    (tmp_path / 'data' / 'test' / 'a').rename(tmp_path / 'data' / 'test' / 'x')
    with pytest.raises(ValueError, match="are b, c, x, the teacher's are a, b, c"):
        create_module(example, words)


def test_module_of_the_lightning_example_with_another_method():
    """It tells the method the epoch, and logs the parts of its loss."""
    example = runpy.run_path(str(LIGHTNING))
    module = example['Distillation'](create_student(), create_teacher(), ['kd'], lr=1e-3, weight_decay=0.05)
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 32, 32), torch.randint(5, (8,)))
    trainer = lightning.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, torch.utils.data.DataLoader(data, 4), torch.utils.data.DataLoader(data, 4))
    assert module.task.epoch == 1
    assert {'train_loss', 'train_ce_loss', 'train_kd_loss', 'val_balanced_accuracy'} <= set(trainer.callback_metrics)
