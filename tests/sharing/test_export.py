"""Exported files equal the model, and contain everything that predict and eval need."""

import io
import json
import shutil
import sys
from contextlib import contextmanager, redirect_stdout

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from helpers import TINY_STUDENT, TINY_TEACHER, randomize_batch_stats, write_images
from PIL import Image
from processes import flags

from hdkd_timm import evaluate_model, predict
from hdkd_timm.cli import main
from hdkd_timm.evaluation.classifier import InferenceConfig, load_classifier
from hdkd_timm.evaluation.evaluate import EvalConfig
from hdkd_timm.evaluation.exported import OnnxModel
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.sharing.export import export_model

CONFIG = InferenceConfig(workers=0, device='cpu', batch_size=3)
# one layer of each kind: exports take long on each
STUDENT = dict(TINY_STUDENT, num_classes=3, depths=(1, 1, 1, 1))
TEACHER = dict(TINY_TEACHER, num_classes=3, depths=(1, 1, 1))
VIT = dict(num_classes=4, depth=1, embed_dim=24, num_heads=2, img_size=32)


def save_student(folder):
    """A model folder with the classes a, b, c whose outputs depend on the BatchNorms and on the image."""
    model = randomize_batch_stats(timm.create_model('hdkd_student', **STUDENT))
    for head in model.get_classifier():
        torch.nn.init.normal_(head.weight)
    save_model(model, folder, list('abc'), STUDENT)


@contextmanager
def converted(path):
    """Within it, a network that is exported is converted to the content of this file: what comes after takes as long
    as it does, but the conversion, which takes the most, is not repeated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('hdkd_timm.sharing.export._serialize', lambda *args: {path.suffix: path.read_bytes()})
        yield


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with a student, its exported files and images; the report of the export; the output of the command.

    The int8 file is made of the content of the float32 file.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('models')
    save_student(folder / 'student')
    write_images(folder / 'data' / 'train', number=8)
    write_images(folder / 'data' / 'test', number=4, seed=1)
    test, train = str(folder / 'data' / 'test'), str(folder / 'data' / 'train')
    report = export_model(folder / 'student', folder / 's.onnx', images=[test])
    with redirect_stdout(io.StringIO()) as text:
        args = ['export', str(folder / 'student')]
        with converted(folder / 's.onnx'):
            assert main([*args, *flags(int8=True, calibration=train, out=folder / 's8.onnx')]) == 0
        settings = dict(format='torch-export', out=folder / 's.pt2', images=[f'{test}/a/0.png', f'{test}/b'])
        assert main([*args, *flags(**settings)]) == 0
    return folder, report, text.getvalue()


def load_torch(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


@pytest.mark.parametrize('batch_size', [1, 3, 5])
def test_files_equal_the_model(models, batch_size):
    folder = models[0]
    x = torch.randn(batch_size, 3, 32, 32)
    with torch.no_grad():
        expected = load_torch(folder / 'student')(x)
    assert expected.std() > 0.1
    session = ort.InferenceSession(str(folder / 's.onnx'), providers=['CPUExecutionProvider'])
    torch.testing.assert_close(torch.from_numpy(session.run(['logits'], {'input': x.numpy()})[0]), expected)
    torch.testing.assert_close(torch.export.load(folder / 's.pt2').module()(x), expected)


def test_nothing_but_the_files(models):
    folder, report, text = models
    assert sorted(p.name for p in folder.iterdir()) == ['data', 's.onnx', 's.pt2', 's8.onnx', 'student']
    assert 0 < report['difference'] < 1e-4 < report['largest_logit']
    assert report['images'] == 12
    assert report['bytes'] == (folder / 's.onnx').stat().st_size
    assert "Largest difference from PyTorch's logits on random images: " in text
    assert "Largest difference from PyTorch's logits on 5 images and random ones: " in text
    assert f"{(folder / 's.pt2').stat().st_size / 1e6:.1f} MB written to '{folder / 's.pt2'}'." in text


def test_metadata(models):
    folder = models[0]
    proto = onnx.load(folder / 's.onnx', load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    extra = {'hdkd_timm': ''}
    torch.export.load(folder / 's.pt2', extra_files=extra)
    (prop,) = proto.metadata_props
    assert prop.key == 'hdkd_timm'
    metadata = json.loads(prop.value)
    assert metadata == json.loads(extra['hdkd_timm'])
    model = load_torch(folder / 'student')
    data_config = timm.data.resolve_data_config(model=model)
    assert metadata.pop('data_config') == json.loads(json.dumps(data_config))
    assert metadata.pop('versions')['torch'] == torch.__version__
    assert metadata == dict(
        architecture='hdkd_student', num_classes=3, label_names=['a', 'b', 'c'], precision='float32', license=None
    )
    (input_info,), (output_info,) = proto.graph.input, proto.graph.output
    assert (input_info.name, output_info.name) == ('input', 'logits')
    assert [d.dim_param or d.dim_value for d in input_info.type.tensor_type.shape.dim] == ['batch', 3, 32, 32]
    assert [d.dim_param or d.dim_value for d in output_info.type.tensor_type.shape.dim] == ['batch', 3]
    for name in ('s.onnx', 's8.onnx', 's.pt2'):  # traces of the code would tell where it lies on this machine
        assert b'hdkd.py' not in (folder / name).read_bytes()


def test_batch_norms_are_folded(models):
    folder = models[0]
    assert 'BatchNormalization' not in {node.op_type for node in onnx.load(folder / 's.onnx').graph.node}


def test_predict_equals_that_of_the_folder(models):
    folder = models[0]
    images = [str(folder / 'data' / 'test')]
    files, expected, _ = predict(str(folder / 'student'), images, CONFIG)
    exported_files, probs, classes = predict(str(folder / 's.onnx'), images, CONFIG)
    assert exported_files == files
    assert classes == ['a', 'b', 'c']
    assert expected.std() > 0.01
    np.testing.assert_allclose(probs, expected, atol=1e-5)


def test_eval_equals_that_of_the_folder(models):
    folder = models[0]
    config = EvalConfig(data_dir=str(folder / 'data'), workers=0, device='cpu', bootstrap=0)
    expected, images = evaluate_model(str(folder / 'student'), config)
    report, exported_images = evaluate_model(str(folder / 's.onnx'), config)
    np.testing.assert_allclose(exported_images['probs'], images['probs'], atol=1e-5)
    assert report['classes'] == ['a', 'b', 'c']
    assert report['per_class'] == expected['per_class']


def test_int8(models):
    """Works like the float32 file; the reported figures are those of predict."""
    folder, report, text = models
    train = [str(folder / 'data' / 'train')]
    assert (folder / 's8.onnx').stat().st_size < 0.9 * report['bytes']
    assert OnnxModel(folder / 's8.onnx').metadata['precision'] == 'int8'
    assert 'QuantizeLinear' in {node.op_type for node in onnx.load(folder / 's8.onnx').graph.node}
    expected, probs = (predict(str(folder / name), train, CONFIG)[1] for name in ('student', 's8.onnx'))
    assert 0 < np.abs(probs - expected).max() < 0.2
    targets = np.repeat([0, 1, 2], 8)
    accuracies = [(p.argmax(axis=1) == targets).mean() for p in (expected, probs)]
    assert 'int8 and float32 on the 24 calibration images:' in text
    assert 'accuracy float32 {:.4f}, int8 {:.4f}'.format(*accuracies) in text
    agreement = (expected.argmax(axis=1) == probs.argmax(axis=1)).mean()
    assert f'same label for {agreement:.1%}, ' in text
    assert f'probabilities {np.abs(probs - expected).max():.4f}' in text
    config = EvalConfig(data_dir=str(folder / 'data'), split='train', workers=0, device='cpu', bootstrap=0)
    assert evaluate_model(str(folder / 's8.onnx'), config)[0]['accuracy'] == accuracies[1]


def test_calibration_by_the_table_of_a_run(models, tmp_path):
    """Its training images are used, and their classes known."""
    folder = models[0]
    images = sorted(folder.glob('data/*/*/*.png'))
    lines = [f'{path},{path.parent.name},{path.parent.parent.name}' for path in images]
    table = tmp_path / 'images.csv'
    table.write_text('\n'.join(['path,label,split', *lines]))
    one = str(folder / 'data' / 'train' / 'a' / '0.png')  # is in the table, too
    with converted(folder / 's.onnx'):
        report = export_model(folder / 'student', tmp_path / 's8.onnx', int8=True, calibration=[str(table), one])
    assert report['calibration_images'] == 24
    probs = predict(str(tmp_path / 's8.onnx'), [str(folder / 'data' / 'train')], CONFIG)[1]
    assert report['accuracy_int8'] == (probs.argmax(axis=1) == np.repeat([0, 1, 2], 8)).mean()
    table.write_text(f'path,label,split\n{images[0]},a,test')
    with pytest.raises(ValueError, match="images.csv' has no row of split 'train'"):
        export_model(folder / 'student', tmp_path / 't8.onnx', int8=True, calibration=[str(table)])


def test_calibration_images_without_class_folders(models, tmp_path, caplog):
    """They are spread evenly over all images, here of classes a and b."""
    folder = models[0]
    for name in 'ab':
        shutil.copytree(folder / 'data' / 'train' / name, tmp_path / 'images' / f'of {name}')
    dark = tmp_path / 'images' / 'of a' / '0.png'
    Image.fromarray(np.arange(24 * 24, dtype=np.uint8).reshape(24, 24) // 32).save(dark)
    with converted(folder / 's.onnx'):
        report = export_model(
            folder / 'student',
            tmp_path / 's8.onnx',
            int8=True,
            calibration=[str(tmp_path / 'images')],
            calibration_images=3,
        )
    assert '1 of 3 images use so little of their value range that they appear nearly black: values' in caplog.text
    assert report['calibration_images'] == 3
    assert 'accuracy_int8' not in report
    picked = [tmp_path / 'images' / name for name in ('of a/0.png', 'of b/0.png', 'of b/7.png')]
    before, after = (
        predict(str(path), [str(p) for p in picked], CONFIG)[1] for path in (folder / 'student', tmp_path / 's8.onnx')
    )
    assert report['prob_difference'] == pytest.approx(np.abs(before - after).max(), abs=1e-5)
    assert report['agreement'] == (before.argmax(axis=1) == after.argmax(axis=1)).mean()


def test_other_models(tmp_path):
    """A grey teacher, and a timm network at another size; neither has class names, which go into the file if given."""
    args = dict(TEACHER, in_chans=1)
    model = randomize_batch_stats(timm.create_model('hdkd_teacher', **args))
    torch.nn.init.normal_(model.head.weight)
    save_model(model, tmp_path / 'grey', model_args=args)
    write_images(tmp_path / 'images', number=2)
    images = [str(tmp_path / 'images')]
    settings = dict(out=tmp_path / 'grey.onnx', opset=18, images=images, label_names=['x', 'Y', 'z'])
    assert main(['export', str(tmp_path / 'grey'), *flags(**settings)]) == 0
    assert onnx.load(tmp_path / 'grey.onnx').opset_import[0].version == 18
    expected = predict(str(tmp_path / 'grey'), images, CONFIG)[1]
    _, probs, classes = predict(str(tmp_path / 'grey.onnx'), images, CONFIG)
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    assert load_classifier(str(tmp_path / 'grey.onnx'), CONFIG).classes == classes == ['x', 'Y', 'z']
    assert len(OnnxModel(tmp_path / 'grey.onnx').metadata['data_config']['mean']) == 1

    args = dict(num_classes=4, channels=(8, 8, 8, 8), stem_width=8)
    save_model(randomize_batch_stats(timm.create_model('resnet10t', **args)), tmp_path / 'resnet', model_args=args)
    export_model(tmp_path / 'resnet', tmp_path / 'resnet.onnx', img_size=64)
    config = InferenceConfig(workers=0, device='cpu', img_size=64)
    assert load_classifier(str(tmp_path / 'resnet.onnx'), config).classes is None
    _, probs, classes = predict(str(tmp_path / 'resnet.onnx'), images, config)
    assert classes == ['0', '1', '2', '3']
    expected = predict(str(tmp_path / 'resnet'), images, config)[1]
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    config = InferenceConfig(workers=0, device='cpu', label_names=('v', 'x', 'Y', 'z'))
    assert load_classifier(str(tmp_path / 'resnet.onnx'), config).classes == ['v', 'x', 'Y', 'z']


ERRORS = [
    (['MODEL', '--out', 'DIR/s.onnx'], 'already exists: choose another --out, nothing is overwritten.'),
    (['MODEL', '--out', 'no/s.onnx'], "Directory 'no' of --out does not exist"),
    (['MODEL', '--out', 'new.pt2'], "--out of --format onnx must end in .onnx, got 'new.pt2'"),
    (['MODEL', '--out', 'new.onnx', '--format', 'torch-export'], 'must end in .pt2'),
    (['MODEL', '--out', 'new.pt2', '--format', 'torch-export', '--int8'], '--int8 is for --format onnx and openvino'),
    (['MODEL', '--out', 'new.pt2', '--format', 'torch-export', '--opset', '20'], '--opset is for --format onnx'),
    (['MODEL', '--out', 'new.onnx', '--opset', '11'], '--opset must be 18 or more, got 11'),
    (['vit', '--out', 'new.onnx', '--opset', '99'], 'with --opset 99: omit it, or use one closer to'),
    (['MODEL', '--out', 'new.onnx', '--int8'], '--int8 needs images to calibrate the ranges'),
    (['MODEL', '--out', 'new.onnx', '--calibration', 'DIR'], '--calibration requires --int8'),
    (['MODEL', '--out', 'new.onnx', '--int8', '--calibration', 'gone'], "'gone' does not exist"),
    (
        ['MODEL', '--out', 'new.onnx', '--int8', '--calibration', 'DIR', '--calibration-images', '0'],
        '--calibration-images must be 1 or more, got 0',
    ),
    (['MODEL', '--out', 'new.onnx', '--images', 'gone.png'], "'gone.png' does not exist"),
    (['MODEL', '--out', 'new.onnx', '--images', 'bad.png'], "Cannot read image 'bad.png'"),
    (['gone', '--out', 'new.onnx'], "Model 'gone' does not exist"),
    (['DIR/s.onnx', '--out', 'new.onnx'], 'is already an exported file'),
    (['headless', '--out', 'new.onnx'], "Model 'headless' returns (2, 32) for two images, expected their logits"),
    (['four', '--out', 'new.onnx', '--images', 'bad.png'], 'can be read with 1 or 3 channels, the model expects 4'),
]


@pytest.mark.parametrize(('args', 'message'), ERRORS)
def test_errors_of_export(models, args, message, tmp_path, monkeypatch, capsys):
    folder = models[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.png').write_text('no image')
    for name, kwargs in (('headless', dict(num_classes=0)), ('four', dict(in_chans=4))):
        if name in args:
            save_model(timm.create_model('hdkd_student', **{**STUDENT, **kwargs}), tmp_path / name)
    if 'vit' in args:
        save_model(timm.create_model('vit_tiny_patch16_224', **VIT), tmp_path / 'vit', model_args=VIT)
    before = sorted([*tmp_path.rglob('*'), *folder.rglob('*')])
    args = [arg.replace('DIR', str(folder)).replace('MODEL', str(folder / 'student')) for arg in args]
    assert main(['export', *args]) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('hdkd export: error: ')
    assert message in lines[0]
    assert captured.out == ''
    assert sorted([*tmp_path.rglob('*'), *folder.rglob('*')]) == before


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    """The check reads the file itself, which here contains another model."""
    save_model(timm.create_model('vit_tiny_patch16_224', **VIT), tmp_path / 'vit', model_args=VIT)
    reparameterize = timm.utils.reparameterize_model

    def broken(model):
        model = reparameterize(model)
        model.head.bias.data += 1
        return model

    monkeypatch.setattr('hdkd_timm.sharing.torch_export.reparameterize_model', broken)
    with pytest.raises(ValueError, match=r'differ from those of .* by up to 1 .*nothing is written'):
        export_model(tmp_path / 'vit', tmp_path / 's.pt2', 'torch-export')
    assert list(tmp_path.iterdir()) == [tmp_path / 'vit']


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_missing_packages(models, package, tmp_path, monkeypatch):
    folder = models[0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"^ONNX export needs onnx, .*: pip install 'hdkd-timm\[onnx\]'\.$"):
        export_model(folder / 'student', tmp_path / 's.onnx')
    if package == 'onnxruntime':
        with pytest.raises(ImportError, match=r"^ONNX files need onnxruntime: pip install 'hdkd-timm\[onnx\]'\.$"):
            load_classifier(str(folder / 's.onnx'))


@pytest.mark.parametrize(
    ('name', 'config', 'message'),
    [
        ('s.onnx', dict(img_size=48), 'expects images of 32 x 32 pixels, not --img-size 48'),
        ('s.onnx', dict(amp=True), 'is an ONNX file, which does not support --amp: omit it, or use --no-amp'),
        ('s.onnx', dict(channels_last=True), 'which does not support --channels-last'),
        ('s.onnx', dict(device='meta'), "onnxruntime does not support device 'meta' here"),
        ('foreign.onnx', {}, 'does not specify its classes and preprocessing'),
        ('damaged.onnx', {}, 'is not an ONNX file that onnxruntime'),
        ('s.pt2', {}, 'is a torch.export program, and loading it can execute code'),
    ],
)
def test_errors_of_load_classifier(models, name, config, message, tmp_path):
    folder = models[0]
    shutil.copy(folder / 's.pt2', tmp_path / 's.pt2')
    shutil.copy(folder / 's.onnx', tmp_path / 's.onnx')
    proto = onnx.load(folder / 's.onnx')
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / 'foreign.onnx')
    (tmp_path / 'damaged.onnx').write_bytes((folder / 's.onnx').read_bytes()[:1000])
    with pytest.raises(ValueError, match=message):
        load_classifier(str(tmp_path / name), InferenceConfig(**{'device': 'cpu', **config}))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(label_names=['a', 'b']), '2 label names for the 3 classes of the model'),
        (dict(label_names=['a', 'b', 'a']), "duplicate label name 'a'"),
        (dict(label_names='abc'), 'label_names must be a list of names'),
        (dict(num_classes=4), r'its metadata state images \[3, 32, 32\] and 4 classes, but its input and output are'),
        (dict(data_config=dict(input_size=[3, 48, 48])), r'its metadata state images \[3, 48, 48\]'),
        (dict(data_config=dict(mean=[0.5])), ''),
        (dict(data_config=dict(mean=[0.5, 0.5])), 'mean must be 3 numbers'),
        (dict(data_config=dict(crop_pct='all')), 'crop_pct must be a number above 0'),
    ],
)
def test_metadata_that_is_wrong(models, changes, message, tmp_path):
    proto = onnx.load(models[0] / 's.onnx')
    metadata = json.loads(proto.metadata_props[0].value)
    metadata['data_config'].update(changes.pop('data_config', {}))
    proto.metadata_props[0].value = json.dumps(dict(metadata, **changes))
    onnx.save(proto, tmp_path / 's.onnx')
    if not message:
        assert load_classifier(str(tmp_path / 's.onnx'), CONFIG).classes == list('abc')
        return
    with pytest.raises(ValueError, match=message):
        load_classifier(str(tmp_path / 's.onnx'), CONFIG)


@pytest.mark.parametrize('name', ['gone.onnx', 'gone.pt2'])
def test_no_such_file(name):
    with pytest.raises(FileNotFoundError, match=f"Model '{name}' does not exist"):
        load_classifier(name, CONFIG)


def test_size_that_is_the_file_s_and_folder_of_that_name(models, tmp_path):
    folder = models[0]
    config = InferenceConfig(workers=0, device='cpu', img_size=32)
    assert load_classifier(str(folder / 's.onnx'), config).data_config['input_size'] == (3, 32, 32)
    shutil.copytree(folder / 'student', tmp_path / 'model.onnx')
    assert load_classifier(str(tmp_path / 'model.onnx'), config).classes == ['a', 'b', 'c']
