"""OpenVINO files equal the model, in float32 and nearly in int8, and contain everything that predict and eval need."""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import openvino
import pytest
import timm
import torch
from helpers import TINY_STUDENT, randomize_batch_stats, write_images
from processes import flags

from hdkd_timm import evaluate_model, predict
from hdkd_timm.cli import main
from hdkd_timm.evaluation.classifier import InferenceConfig, load_classifier
from hdkd_timm.evaluation.evaluate import EvalConfig
from hdkd_timm.evaluation.exported import OpenVinoModel, openvino_core
from hdkd_timm.models.checkpoint import save_model
from hdkd_timm.sharing.export import export_model
from hdkd_timm.sharing.openvino_export import ELEMENTWISE

CONFIG = InferenceConfig(workers=0, device='cpu', batch_size=3)
STUDENT = dict(TINY_STUDENT, num_classes=3, depths=(1, 1, 1, 1))
EVAL = EvalConfig(split='train', workers=0, device='cpu', bootstrap=0)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with a student, its float32 and int8 files and images; the reports of both exports."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('models')
    model = randomize_batch_stats(timm.create_model('hdkd_student', **STUDENT))
    for head in model.get_classifier():
        torch.nn.init.normal_(head.weight)
    save_model(model, folder / 'student', list('abc'), STUDENT)
    write_images(folder / 'data' / 'train', number=8)
    train = [str(folder / 'data' / 'train')]
    report = export_model(folder / 'student', folder / 's.xml', 'openvino', images=train)
    report8 = export_model(folder / 'student', folder / 's8.xml', 'openvino', int8=True, calibration=train)
    return folder, report, report8


@pytest.mark.parametrize('batch_size', [1, 3, 5])
def test_file_equals_the_model(models, batch_size):
    """Also in OpenVINO without this package."""
    folder = models[0]
    x = torch.randn(batch_size, 3, 32, 32)
    with torch.inference_mode():
        expected = timm.create_model(f'local-dir:{folder / "student"}', pretrained=True).eval()(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(OpenVinoModel(folder / 's.xml')(x), expected, atol=1e-4, rtol=1e-4)
    hint = {'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = openvino_core().compile_model(folder / 's.xml', 'CPU', hint)
    logits = compiled({'input': x.numpy()})['logits']
    torch.testing.assert_close(torch.from_numpy(logits.copy()), expected, atol=1e-4, rtol=1e-4)


def test_logits_are_not_those_of_the_next_batch(models):
    model = OpenVinoModel(models[0] / 's.xml')
    x = torch.randn(2, 1, 3, 32, 32)
    first = model(x[0])
    kept = first.clone()
    assert not torch.equal(model(x[1]), kept)
    assert torch.equal(first, kept)


def test_files_and_report(models):
    folder, report, report8 = models
    names = ['data', 's.bin', 's.xml', 's8.bin', 's8.xml', 'student']
    assert sorted(path.name for path in folder.iterdir()) == names
    sizes = [(folder / f'{name}.xml').stat().st_size + (folder / f'{name}.bin').stat().st_size for name in ('s', 's8')]
    assert [report['bytes'], report8['bytes']] == sizes
    assert report8['bytes_float32'] == pytest.approx(report['bytes'], abs=200)
    assert (folder / 's8.bin').stat().st_size < 0.5 * (folder / 's.bin').stat().st_size
    assert 0 < report['difference'] < 1e-4 < report['largest_logit']
    assert report['images'] == report8['calibration_images'] == 24
    for path in (folder / 's.xml', folder / 's8.xml'):  # traces of the code would tell where it lies on this machine
        assert b'hdkd.py' not in path.read_bytes()
        assert str(folder).encode() not in path.read_bytes()


def test_metadata(models):
    folder = models[0]
    network = openvino.Core().read_model(folder / 's.xml')
    assert network.input('input').partial_shape == openvino.PartialShape([-1, 3, 32, 32])
    metadata = json.loads(network.get_rt_info(['hdkd_timm']).astype(str))
    data_config = timm.data.resolve_data_config(model=timm.create_model(f'local-dir:{folder / "student"}'))
    assert metadata['data_config'] == json.loads(json.dumps(data_config))
    assert metadata['label_names'] == ['a', 'b', 'c']
    assert (metadata['num_classes'], metadata['precision']) == (3, 'float32')
    assert OpenVinoModel(folder / 's8.xml').metadata['precision'] == 'int8'


def test_predict_and_eval_equal_those_of_the_folder(models):
    folder = models[0]
    images = [str(folder / 'data')]
    files, expected, classes = predict(str(folder / 'student'), images, CONFIG)
    assert expected.std() > 0.01
    exported_files, probs, exported_classes = predict(str(folder / 's.xml'), images, CONFIG)
    assert (exported_files, exported_classes) == (files, classes)
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    config = EvalConfig(**{**vars(EVAL), 'data_dir': str(folder / 'data')})
    report = evaluate_model(str(folder / 's.xml'), config)[0]
    assert report['per_class'] == evaluate_model(str(folder / 'student'), config)[0]['per_class']


def test_int8(models):
    """The reported figures are those of predict, on images of all classes."""
    folder, _, report = models
    train = [str(folder / 'data' / 'train')]
    expected, probs = (predict(str(folder / name), train, CONFIG)[1] for name in ('student', 's8.xml'))
    difference = np.abs(probs - expected).max()
    assert 0 < difference < 0.2
    assert report['prob_difference'] == pytest.approx(difference, abs=1e-5)
    assert report['agreement'] == (expected.argmax(axis=1) == probs.argmax(axis=1)).mean()
    targets = np.repeat([0, 1, 2], 8)
    accuracies = [(p.argmax(axis=1) == targets).mean() for p in (expected, probs)]
    assert [report['accuracy_float32'], report['accuracy_int8']] == accuracies


def test_what_is_quantised(models):
    """Inputs of convolutions and matrix products; not those of sums, gates and means, which cost the most accuracy."""
    network = openvino.Core().read_model(models[0] / 's8.xml')
    quantised = {
        node.get_type_name()
        for node in network.get_ops()
        if any(value.get_node().get_type_name() == 'FakeQuantize' for value in node.input_values())
    }
    assert {'Convolution', 'MatMul'} <= quantised
    assert not quantised & set(ELEMENTWISE)


def test_a_file_that_differs_is_refused(models, tmp_path, monkeypatch):
    """Neither of its two files is written."""
    monkeypatch.setattr('hdkd_timm.sharing.export.TOLERANCE', 0)
    with pytest.raises(ValueError, match='nothing is written'):
        export_model(models[0] / 'student', tmp_path / 's.xml', 'openvino')
    assert not list(tmp_path.iterdir())


def test_command(models, tmp_path, capsys):
    folder = models[0]
    args = ['export', str(folder / 'student'), *flags(format='openvino', out=tmp_path / 'a.xml')]
    assert main(args) == 0
    megabytes = sum(path.stat().st_size for path in tmp_path.iterdir()) / 1e6
    assert (
        f"{megabytes:.1f} MB written to '{tmp_path / 'a.xml'}' and '{tmp_path / 'a.bin'}'." in capsys.readouterr().out
    )
    assert main(args) == 1
    (tmp_path / 'a.xml').unlink()
    assert main(args) == 1
    assert f"'{tmp_path / 'a.bin'}' already exists: choose another --out" in capsys.readouterr().err


def test_damaged_weights_are_refused(models, tmp_path):
    """The .xml file alone does not tell whose weights lie beside it; damaged ones would give wrong diagnoses."""
    folder = models[0]
    shutil.copy(folder / 's.xml', tmp_path / 'other.xml')
    weights = bytearray((folder / 's.bin').read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / 'other.bin').write_bytes(weights)
    message = r"other\.bin' does not hold the weights of '.*other\.xml', or is damaged .*: restore both from a copy"
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path / 'other.xml', CONFIG)


def test_errors_of_load_classifier(models, tmp_path):
    folder = models[0]

    def load(path=folder / 's.xml', **config):
        load_classifier(str(path), InferenceConfig(**{'device': 'cpu', **config}))

    shutil.copy(folder / 's.xml', tmp_path / 'alone.xml')
    with pytest.raises(FileNotFoundError, match=r"alone\.bin', the weights of '.*alone\.xml', does not exist"):
        load(tmp_path / 'alone.xml')
    with pytest.raises(ValueError, match=r"s\.bin' has the weights of an OpenVINO file: give '.*s\.xml'"):
        load(folder / 's.bin')
    with pytest.raises(FileNotFoundError, match=r"Model 'gone\.xml' does not exist"):
        load('gone.xml')
    shutil.copy(folder / 's.bin', tmp_path / 'damaged.bin')
    (tmp_path / 'damaged.xml').write_bytes((folder / 's.xml').read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"damaged\.xml' is not a model that OpenVINO .* can run, or it or its weights"
    ):
        load(tmp_path / 'damaged.xml')
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    openvino.save_model(openvino.convert_model(program), tmp_path / 'f.xml')
    with pytest.raises(ValueError, match=r"f\.xml' does not specify its classes and preprocessing"):
        load(tmp_path / 'f.xml')
    with pytest.raises(ValueError, match='expects images of 32 x 32 pixels, not --img-size 48'):
        load(img_size=48)
    with pytest.raises(ValueError, match='is an OpenVINO file, which does not support --amp: omit it, or use --no-amp'):
        load(amp=True)
    with pytest.raises(ValueError, match="OpenVINO files are run on the CPU here, not on 'meta': use --device cpu"):
        load(device='meta')
    with pytest.raises(ValueError, match='is already an exported file'):
        export_model(folder / 's.xml', tmp_path / 't.xml', 'openvino')


@pytest.mark.parametrize('package', ['openvino', 'nncf'])
def test_missing_packages(models, package, tmp_path, monkeypatch):
    """NNCF is needed for int8 alone."""
    folder = models[0]
    monkeypatch.setitem(sys.modules, package, None)
    settings = dict(int8=True, calibration=[str(folder / 'data' / 'train')])
    message = r"^OpenVINO export needs openvino and nncf: pip install 'hdkd-timm\[openvino\]'\.$"
    with pytest.raises(ImportError, match=message):
        export_model(folder / 'student', tmp_path / 's.xml', 'openvino', **settings)
    if package == 'openvino':
        with pytest.raises(
            ImportError, match=r"^OpenVINO export needs openvino: pip install 'hdkd-timm\[openvino\]'\.$"
        ):
            export_model(folder / 'student', tmp_path / 's.xml', 'openvino')
        with pytest.raises(ImportError, match=r"^OpenVINO files need openvino: pip install 'hdkd-timm\[openvino\]'\.$"):
            load_classifier(str(folder / 's.xml'))


REPORTING = """
import sys, numpy
from pathlib import Path
from hdkd_timm.evaluation.classifier import load_classifier
from hdkd_timm.sharing.openvino_export import import_nncf
if sys.argv[1:]:
    load_classifier(sys.argv[1])
else:
    assert import_nncf().__version__
import openvino
assert 'openvino.tools.ovc' in sys.modules
print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry')))
"""


@pytest.mark.parametrize('loads', [True, False])
def test_nothing_is_reported_over_the_network(models, loads):
    """OpenVINO reports its use when it is imported, and NNCF later; through this package they do not."""
    assert importlib.util.find_spec('openvino_telemetry') is not None  # it is there to be imported
    args = [str(models[0] / 's8.xml')] * loads
    result = subprocess.run([sys.executable, '-c', REPORTING, *args], capture_output=True, text=True, check=True)
    assert result.stdout == '[]\n'


AFTERWARDS = """
import sys
from hdkd_timm import TrainConfig, train
from hdkd_timm.sharing.export import export_model
if __name__ == '__main__':
    model, data, out = sys.argv[1:]
    export_model(model, f'{out}/a.xml', 'openvino', int8=True, calibration=[f'{data}/train'])
    train(TrainConfig(data_dir=data, img_size=32, epochs=1, workers=2, output=out, bootstrap=0, device='cpu'))
    print('trained')
"""


def test_training_after_an_export(models, tmp_path):
    """In one process, such as a notebook: signals of loader processes that end crashed it, see `openvino_core`."""
    folder = models[0]
    data = tmp_path / 'data'
    for split in ('train', 'test'):
        shutil.copytree(folder / 'data' / 'train', data / split)
    args = [sys.executable, '-c', AFTERWARDS, str(folder / 'student'), str(data), str(tmp_path)]
    result = subprocess.run(args, capture_output=True, text=True)
    assert result.stdout.endswith('trained\n'), (result.returncode, result.stderr)


def test_failing_nncf(models, tmp_path, monkeypatch):
    monkeypatch.setattr('hdkd_timm.sharing.openvino_export.np.save', lambda path, images: path.write_text('no images'))
    settings = dict(int8=True, calibration=[str(models[0] / 'data' / 'train')])
    with pytest.raises(ChildProcessError, match='NNCF cannot quantise the model .*'):
        export_model(models[0] / 'student', tmp_path / 's.xml', 'openvino', **settings)
    assert not list(tmp_path.iterdir())


def test_export_is_quiet(models, tmp_path, capfd, caplog):
    folder = models[0]
    with caplog.at_level(logging.INFO):
        train = [str(folder / 'data' / 'train')]
        export_model(folder / 'student', tmp_path / 's.xml', 'openvino', int8=True, calibration=train)
    assert capfd.readouterr() == ('', '')
    records = [(record.name.split('.')[0], record.levelno) for record in caplog.records]
    assert not [name for name, level in records if level >= logging.WARNING or name in ('nncf', 'openvino')]
