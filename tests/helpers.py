"""What several test files share: tiny networks, the published code's tensors, small image folders."""

import re
import shutil
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import nn

# a browser for the tests of pages
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
FIXTURES = Path(__file__).parent / 'fixtures'

# the networks of the fixtures
TINY = dict(img_size=32, num_classes=5, dims=(8, 16, 24))
TINY_TEACHER = dict(TINY, depths=(2, 1, 2))
TINY_STUDENT = dict(TINY, depths=(1, 2, 2, 2), embed_dim=32, num_heads=2, head_dim=8, mlp_ratio=2)


def create_student(**kwargs):
    return timm.create_model('hdkd_student', **{**TINY_STUDENT, **kwargs})


def create_teacher(name='hdkd_teacher', **kwargs):
    return timm.create_model(name, **{**TINY_TEACHER, **kwargs})


def has_same_weights(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def save_checkpoint(folder, content):
    """Write a file of torch.save into a folder. Returns its path."""
    torch.save(content, folder / 'a.pth')
    return folder / 'a.pth'


def strip_prefix(tensors, prefix):
    """The tensors whose name starts with the prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_reference(name):
    """Tensors and metadata of a fixture file."""
    path = FIXTURES / f'{name}.safetensors'
    with safe_open(path, 'pt') as file:
        metadata = file.metadata() or {}
    return load_file(path), metadata


def load_published(name):
    """State dict, input and logits that the published code wrote for 'teacher', 'student' or 'student_plain'."""
    reference, _ = load_reference(f'{name}_seed0')
    return strip_prefix(reference, 'state.'), reference['input'], reference['eval.logits']


def parse_case(words):
    """The settings of a loss case, 'kind=soft alpha=0.5 ... stages=[1, 2, 3]'."""
    case = dict(re.findall(r'(\w+)=(\[.*?\]|\S+)', words))
    return dict(
        kind=case['kind'],
        alpha=float(case['alpha']),
        tau=float(case['tau']),
        feature_weight=float(case['lambda']),
        stage_exponent=float(case['stage_exponent']),
        stages=[int(digit) for digit in re.findall(r'\d+', case['stages'])],
    )


def write_images(folder, classes=('a', 'b', 'c'), number=6, size=40, mode='RGB', suffix='.png', seed=0):
    """Images of noise around a brightness that tells the class, `folder/<class>/<i><suffix>`."""
    rng = np.random.default_rng(seed)
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for j in range(number):
            pixels = rng.normal(40 + 80 * i, 20, (size, size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f'{j}{suffix}')


def spread_predictions(model, folder):
    """Change a network's heads so that its predictions differ from image to image of a folder, in place."""
    paths = sorted(folder.rglob('*.png'))
    transform = create_transform(**resolve_data_config({'input_size': (3, *model.img_size)}, model=model))
    images = torch.stack([transform(Image.open(path).convert('RGB')) for path in paths])
    heads = model.get_classifier()
    with torch.no_grad():
        for head in heads if isinstance(heads, tuple) else (heads,):
            head.weight *= 100
            head.bias.zero_()
        offset = model.eval()(images).mean(dim=0)
        for head in heads if isinstance(heads, tuple) else (heads,):
            head.bias -= offset


def save_blank(figure, path, dpi):
    """In the place of `plots.save_figure`, for tests of what is around plots: drawing takes most of the time."""
    Image.new('RGB', (9, 9)).save(path, format='PNG')


def smooth_image(seed, size=48):
    """A random image without fine detail, RGB."""
    rng = np.random.default_rng(seed)
    grid = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return grid.resize((size, size), Image.Resampling.BICUBIC)


def randomize_batch_stats(model):
    """Give the BatchNorms statistics, scales and shifts as after a training. Returns the model."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(std=0.1)
                m.running_var.uniform_(0.5, 2)
                m.weight.uniform_(0.5, 2)
                m.bias.normal_(std=0.5)
    return model


def write_dicom(path, values, interpretation='MONOCHROME2', syntax='1.2.840.10008.1.2.1', **tags):
    """A DICOM file of unsigned pixels, or signed ones."""
    import pydicom
    from pydicom.uid import UID, CTImageStorage, generate_uid

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    values = np.asarray(values)
    bits = 8 * values.dtype.itemsize
    colour = interpretation in ('RGB', 'YBR_FULL')
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = interpretation
    dataset.Rows, dataset.Columns = values.shape[:2] if colour else values.shape[-2:]
    if values.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(values)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == 'i')
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset['PixelData'].VR = 'OW' if bits == 16 else 'OB'
    dataset.save_as(path, enforce_file_format=True)
    return path


def random_split(num_classes, number=200, seed=0, decimals=None):
    """Probabilities somewhat better than chance, and targets; few decimals cause ties."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(num_classes, size=number)
    logits = rng.normal(size=(number, num_classes)) + np.eye(num_classes)[targets]
    if decimals is not None:
        logits = logits.round(decimals)
    probs = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).round(9)
    probs[:, 0] = 1 - probs[:, 1:].sum(axis=1)
    return probs, targets


def write_run(folder, names, number=4, right=0.5, seed=0, groups=None):
    """The folder of a run with these classes, as many test images of each, and no image files. Returns its results.

    `groups` are those of the test images.
    """
    from hdkd_timm.evaluation.predictions import write_predictions
    from hdkd_timm.evaluation.single_label import single_label_report
    from hdkd_timm.utils.csv_files import write_rows
    from hdkd_timm.utils.files import write_json

    (folder / 'best').mkdir(parents=True)
    rng = np.random.default_rng(seed)
    targets = np.arange(len(names)).repeat(number)
    probs = rng.dirichlet(np.ones(len(names)), size=len(targets))
    is_right = rng.random(len(targets)) < right
    probs[is_right] = 0.1 * probs[is_right] + 0.9 * np.eye(len(names))[targets[is_right]]
    images = [f'/data/{i}.png' for i in range(len(targets))]
    write_predictions(folder / 'predictions.csv', images, probs, names, targets)
    rows = [dict(path=image, label=names[k]) for image, k in zip(images, targets)]
    if groups is not None:
        rows = [dict(row, group=group) for row, group in zip(rows, groups)]
    write_rows([dict(row, split=split) for split in ('train', 'test') for row in rows], folder / 'images.csv')
    write_rows([dict(epoch=0, train_loss=1.5, val_log_loss=1.0)], folder / 'summary.csv')
    (folder / 'config.yaml').write_text('model: hdkd_student\n')
    report = single_label_report(probs, targets, names, None, 0, 1)
    write_json(
        dict(name='student', parameters=5, epoch=0, epochs=1, train_seconds=2.0, classes=names, test=report),
        folder / 'metrics.json',
    )
    write_json(
        dict(architecture='hdkd_student', pretrained_cfg=dict(input_size=[3, 32, 32])), folder / 'best' / 'config.json'
    )
    return report
