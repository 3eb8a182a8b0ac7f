"""Images with any number of labels, from the table to every command."""

import csv
import json
import logging

import numpy as np
import onnxruntime
import pytest
import sklearn.metrics as sk
import timm
import torch
import yaml
from PIL import Image
from training_helpers import STUDENT, TEACHER, load

from hdkd_timm import DistillConfig, TrainConfig, distill, evaluate_model, train
from hdkd_timm.cli import main
from hdkd_timm.evaluation.classifier import InferenceConfig, load_classifier
from hdkd_timm.evaluation.evaluate import EvalConfig
from hdkd_timm.evaluation.metrics import MULTI_LABEL_METRICS
from hdkd_timm.evaluation.multi_label import choose_thresholds
from hdkd_timm.evaluation.predict import predict
from hdkd_timm.evaluation.run_results import read_networks

NAMES = ['left', 'red', 'top']


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    """A table of 60 images whose labels can be seen: a bright left or upper half, or red."""
    folder, rng = tmp_path_factory.mktemp('labels'), np.random.default_rng(0)
    rows = []
    for i in range(60):
        has = dict(zip(NAMES, rng.random(3) < [0.4, 0.3, 0.5]))
        x = rng.integers(0, 60, (32, 32, 3))
        x[:, :16] += 70 * has['left']
        x[..., 0] += 60 * has['red']
        x[:16] += 110 * has['top']
        Image.fromarray(x.astype(np.uint8)).save(folder / f'{i}.png')
        split = 'train' if i < 36 else 'val' if i < 48 else 'test'
        rows.append(
            dict(path=f'{i}.png', label='|'.join(name for name in NAMES if has[name]), split=split, group=i // 2)
        )
    with (folder / 'table.csv').open('w') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / 'table.csv'


@pytest.fixture(scope='module')
def distilled(table):
    """A distillation of these images, its settings, results and folder."""
    torch.manual_seed(0)
    config = DistillConfig(
        data_csv=str(table),
        multi_label=True,
        img_size=32,
        epochs=4,
        batch_size=6,
        lr=5e-3,
        teacher_lr=5e-3,
        workers=0,
        device='cpu',
        bootstrap=20,
        class_weights='balanced',
        smoothing=0.05,
        model_kwargs=STUDENT,
        teacher_kwargs=TEACHER,
        student_alone=True,
        output=str(table.parent / 'runs'),
        experiment='run',
    )
    return config, distill(config), table.parent / 'runs' / 'run'


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def read_labels(table, split):
    rows = [row for row in read(table) if row['split'] == split]
    return np.array([[name in row['label'].split('|') for name in NAMES] for row in rows])


def read_probs(path):
    return np.array([[float(row[f'prob_{name}']) for name in NAMES] for row in read(path)])


def test_results_are_those_of_scikit_learn(distilled, table):
    _, metrics, run = distilled
    targets = read_labels(table, 'test')
    for name in ('teacher', 'student_alone', 'student'):
        result = metrics['models'][name]
        assert result['problem_type'] == 'multi_label_classification'
        probs = read_probs(run / name / 'predictions.csv')
        limits = [result['test']['per_class'][label]['threshold'] for label in NAMES]
        predicted = probs >= limits
        assert [row['label'] for row in read(run / name / 'predictions.csv')] == [
            '|'.join(label for label, has in zip(NAMES, row) if has) for row in predicted
        ]
        assert {key: result['test'][key] for key in MULTI_LABEL_METRICS} == pytest.approx(
            dict(
                macro_auroc=sk.roc_auc_score(targets, probs),
                mean_ap=sk.average_precision_score(targets, probs),
                macro_f1=sk.f1_score(targets, predicted, average='macro', zero_division=np.nan),
                micro_f1=sk.f1_score(targets, predicted, average='micro'),
                exact_match=sk.accuracy_score(targets, predicted),
                log_loss=np.mean([sk.log_loss(targets[:, k], probs[:, k], labels=[0, 1]) for k in range(3)]),
            )
        )


def test_thresholds_are_chosen_on_validation_images(distilled, table):
    config, metrics, run = distilled
    saved = json.loads((run / 'student' / 'best' / 'config.json').read_text())
    assert saved['problem_type'] == 'multi_label_classification'
    assert not {'problem_type', 'thresholds'} & set(saved['pretrained_cfg'])
    files = [str(table.parent / row['path']) for row in read(table) if row['split'] == 'val']
    _, probs, classes = predict(str(run / 'student'), files, InferenceConfig(workers=0, device='cpu'))
    expected = choose_thresholds(probs, read_labels(table, 'val'))
    assert classes == NAMES
    assert list(saved['thresholds'].values()) == pytest.approx(expected, abs=1e-5)
    state = torch.load(run / 'student' / 'last.pth', weights_only=True)
    assert state['problem_type'] == saved['problem_type']
    assert 'thresholds' not in state  # of the best epoch, whose weights these are not


def test_the_epoch_with_the_best_auroc_is_kept(distilled):
    config, metrics, run = distilled
    assert yaml.safe_load((run / 'config.yaml').read_text())['select_metric'] == 'macro_auroc'
    rows = read(run / 'student' / 'summary.csv')
    areas = [float(row['val_macro_auroc']) for row in rows]
    assert metrics['models']['student']['epoch'] == int(np.argmax(areas))
    assert {'train_mean_ap', 'val_auroc_red', 'val_f1_top', 'train_kd_loss'} <= set(rows[0])


def test_it_learns(distilled):
    """Labels that are halves of an image are found by the teacher."""
    assert distilled[1]['models']['teacher']['test']['macro_auroc'] > 0.8


def test_images_csv_reads_back(distilled, table):
    _, _, run = distilled
    assert [row['label'] for row in read(run / 'images.csv')] == [row['label'] for row in read(table)]


def test_eval_repeats_the_test(distilled, tmp_path, capsys):
    config, metrics, run = distilled
    out = str(tmp_path / 'out')
    common = ['-j', '0', '--device', 'cpu', '-b', '5']
    command = ['eval', str(run / 'student'), '--config', str(run / 'config.yaml'), *common]
    assert main([*command, '--out-dir', out]) == 0
    printed = capsys.readouterr().out
    assert 'mean average precision' in printed
    assert 'specificity' in printed
    report = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    expected = metrics['models']['student']['test']
    assert {key: report[key] for key in MULTI_LABEL_METRICS} == pytest.approx(
        {key: expected[key] for key in MULTI_LABEL_METRICS}, rel=1e-4
    )
    np.testing.assert_allclose(
        read_probs(tmp_path / 'out' / 'predictions.csv'), read_probs(run / 'student' / 'predictions.csv'), atol=1e-5
    )
    assert [row['target'] for row in read(tmp_path / 'out' / 'predictions.csv')] == [
        row['target'] for row in read(run / 'student' / 'predictions.csv')
    ]


def test_data_with_fewer_labels(distilled, table, tmp_path, caplog):
    """What the data does not say of an image is no mistake."""
    _, _, run = distilled
    rows = [row for row in read(table) if row['split'] == 'test']
    (tmp_path / 'two.csv').write_text(
        'path,top,left\n'
        + ''.join(f'{row["path"]},{"top" in row["label"]:d},{"left" in row["label"]:d}\n' for row in rows)
    )
    config = EvalConfig(
        data_csv=str(tmp_path / 'two.csv'),
        data_dir=str(table.parent),
        label_column=('top', 'left'),
        bootstrap=0,
        workers=0,
        device='cpu',
    )
    report, images = evaluate_model(str(run / 'student'), config)
    assert report['classes'] == ['left', 'top']
    assert 'The data has no column of the labels red of model' in caplog.text
    targets = read_labels(table, 'test')[:, [0, 2]]
    np.testing.assert_array_equal(images['targets'], targets)
    assert report['macro_auroc'] == pytest.approx(sk.roc_auc_score(targets, images['probs']))


def test_data_with_one_label(distilled, table, tmp_path):
    """A column of 0 and 1 says nothing of the others."""
    _, _, run = distilled
    rows = [row for row in read(table) if row['split'] == 'test']
    lines = [f'{row["path"]},{"top" in row["label"]:d}\n' for row in rows]
    (tmp_path / 'one.csv').write_text('path,top\n' + ''.join(lines))
    settings = dict(data_dir=str(table.parent), bootstrap=0, workers=0, device='cpu', label_column=('top',))
    report, images = evaluate_model(str(run / 'student'), EvalConfig(data_csv=str(tmp_path / 'one.csv'), **settings))
    assert report['classes'] == ['top']
    assert report['macro_auroc'] == pytest.approx(
        sk.roc_auc_score(read_labels(table, 'test')[:, 2], images['probs'][:, 0])
    )


def test_a_column_of_labels_lists_all_of_an_image(distilled, table, tmp_path, caplog):
    """Labels of the model that no image of the table has count as not there."""
    _, _, run = distilled
    rows = [row for row in read(table) if row['split'] == 'test' and 'red' not in row['label']]
    lines = [f'{row["path"]},{row["label"]}\n' for row in rows]
    (tmp_path / 'some.csv').write_text('path,label\n' + ''.join(lines))
    settings = dict(data_dir=str(table.parent), bootstrap=0, workers=0, device='cpu')
    report, images = evaluate_model(str(run / 'student'), EvalConfig(data_csv=str(tmp_path / 'some.csv'), **settings))
    assert report['classes'] == NAMES
    assert 'No image has the labels red of model' in caplog.text
    limits = load_classifier(run / 'student').thresholds
    expected = np.array([[name in row['label'].split('|') for name in NAMES] for row in rows])
    assert report['exact_match'] == sk.accuracy_score(expected, images['probs'] >= limits)
    lines = [f'{row["path"]},\n' for row in rows]
    (tmp_path / 'none.csv').write_text('path,label\n' + ''.join(lines))
    report, _ = evaluate_model(str(run / 'student'), EvalConfig(data_csv=str(tmp_path / 'none.csv'), **settings))
    assert np.isnan(report['macro_auroc'])
    assert report['log_loss'] > 0


def test_a_model_of_labels_gives_no_single_class(distilled, table, tmp_path, capsys):
    _, _, run = distilled
    command = ['eval', str(run / 'student'), '--data-csv', str(table), '--bootstrap', '0', '-j', '0', '--device', 'cpu']
    assert main([*command, '--no-multi-label']) == 1
    assert 'gives each image any number of labels: drop --no-multi-label, or' in capsys.readouterr().err
    for flags in ([], ['--multi-label']):
        assert main([*command, *flags]) == 0
        assert 'mean average precision' in capsys.readouterr().out


def test_predict(distilled, table, tmp_path):
    _, _, run = distilled
    images = [str(table.parent / f'{i}.png') for i in range(4)]
    common = ['-j', '0', '--device', 'cpu']
    for name in ('a.csv', 'b.jsonl'):
        assert main(['predict', str(run / 'student'), *images, '--out', str(tmp_path / name), *common]) == 0
    lines = [json.loads(line) for line in (tmp_path / 'b.jsonl').read_text().splitlines()]
    rows = read(tmp_path / 'a.csv')
    limits = json.loads((run / 'student' / 'best' / 'config.json').read_text())['thresholds']
    for line, row in zip(lines, rows):
        assert line['label'] == [name for name in NAMES if line['probs'][name] >= limits[name]]
        assert row['label'] == '|'.join(line['label'])
        assert sum(line['probs'].values()) != pytest.approx(1)
    model = load(run / 'student').eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        expected = model(transform(Image.open(images[0]).convert('RGB'))[None]).sigmoid()[0]
    np.testing.assert_allclose(list(lines[0]['probs'].values()), expected, atol=1e-5)


def test_test_time_augmentation_is_the_mean_of_probabilities(distilled, table):
    _, _, run = distilled
    path = str(table.parent / '0.png')
    settings = dict(workers=0, device='cpu')
    _, probs, _ = predict(str(run / 'student'), [path], InferenceConfig(**settings, tta='hflip'))
    flipped = table.parent / 'flipped.png'
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped)
    _, each, _ = predict(str(run / 'student'), [path, str(flipped)], InferenceConfig(**settings))
    flipped.unlink()
    np.testing.assert_allclose(probs[0], each.mean(axis=0), atol=1e-6)


def test_calibration_moves_thresholds_with_the_probabilities(distilled, capsys):
    config, _, run = distilled
    folder = str(run / 'student_alone')
    assert main(['calibrate', folder, '-j', '0', '--device', 'cpu']) == 0
    assert 'temperature' in capsys.readouterr().out
    temperature = json.loads((run / 'student_alone' / 'best' / 'calibration.json').read_text())['temperature']
    plain, calibrated = (
        load_classifier(folder, InferenceConfig(device='cpu', calibrated=value)).thresholds for value in (False, True)
    )
    odds = np.log(plain / (1 - plain)) / temperature
    np.testing.assert_allclose(calibrated, 1 / (1 + np.exp(-odds)))


def test_onnx(distilled, table, tmp_path):
    _, _, run = distilled
    path = tmp_path / 'a.onnx'
    assert main(['export', str(run / 'student'), '--out', str(path), '--images', str(table.parent / '0.png')]) == 0
    metadata = json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map['hdkd_timm'])
    assert list(metadata['thresholds']) == NAMES
    images = [str(table.parent / f'{i}.png') for i in range(3)]
    settings = InferenceConfig(workers=0, device='cpu')
    (_, expected, _), (_, found, _) = (predict(str(name), images, settings) for name in (run / 'student', path))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(
        load_classifier(path, settings).thresholds, load_classifier(run / 'student', settings).thresholds
    )


def test_report_card_and_explanations(distilled, table, tmp_path):
    _, _, run = distilled
    assert main(['report', str(run), '--mistakes', '2']) == 0
    page = (run / 'report.html').read_text()
    for text in ('mean average precision', '>threshold<', 'specificity', 'wrong label', 'Curves of each label'):
        assert text in page
    assert 'Confusion matrix' not in page
    assert 'McNemar' not in page
    assert main(['push', str(run / 'student'), 'us/net', '--out', str(tmp_path / 'hub')]) == 0
    card = (tmp_path / 'hub' / 'README.md').read_text()
    assert '3 labels, of which an image has any number: left, red, top' in card
    assert 'mean average precision' in card
    assert 'confusion.png' not in card
    assert f'| train | {" | ".join(map(str, read_labels(table, "train").sum(axis=0)))} | 36 |' in card
    config = json.loads((tmp_path / 'hub' / 'config.json').read_text())
    assert config['problem_type'] == 'multi_label_classification'
    assert load_classifier(tmp_path / 'hub', InferenceConfig(device='cpu')).is_multi_label
    command = ['explain', str(run / 'student'), str(table.parent / '0.png'), '--label', 'red', '--device', 'cpu']
    assert main([*command, '--out', str(tmp_path / 'maps')]) == 0


def test_check_counts_labels(table, tmp_path, capsys):
    out = ['--out', str(tmp_path / 'out'), '--write-split', str(table.parent / 'new.csv')]
    assert main(['check', '--data-csv', str(table), '--multi-label', *out]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert list(summary['images']['train'].values()) == read_labels(table, 'train').sum(axis=0).tolist()
    assert summary['total'] == dict(train=36, val=12, test=12)
    written = read(table.parent / 'new.csv')
    sizes = ', '.join(f'{s} {sum(row["split"] == s for row in written)}' for s in ('train', 'val', 'test'))
    assert f'is a split without leaks ({sizes})' in printed
    labels = {row['path']: row['label'] for row in read(table)}
    assert {row['path']: row['label'] for row in written} == labels


def test_training_goes_on_where_it_was_stopped(table, tmp_path):
    """Bit-equal, thresholds included: those of a best epoch before the stop are kept, too."""
    settings = dict(data_csv=str(table), multi_label=True, img_size=32, batch_size=6, workers=0, device='cpu')
    settings.update(bootstrap=0, sched='none', lr=5e-3, model_kwargs=STUDENT, output=str(tmp_path))
    train(TrainConfig(**settings, epochs=4, experiment='whole'))
    train(TrainConfig(**settings, epochs=2, experiment='half'))
    train(TrainConfig(**settings, epochs=4, experiment='half'), resume=True)
    for name in ('predictions.csv', 'best/config.json'):
        assert (tmp_path / 'half' / name).read_text() == (tmp_path / 'whole' / name).read_text()
    rows = [
        [(row['epoch'], row['val_macro_auroc']) for row in read(tmp_path / n / 'summary.csv')]
        for n in ('half', 'whole')
    ]
    assert rows[0] == rows[1]


def test_a_split_without_any_label(distilled, table, tmp_path, caplog):
    """Areas are undefined there, and no reason to refuse the run's files."""
    config, _, _ = distilled
    lines = [f'{row["path"]},{row["label"] if row["split"] != "test" else ""},{row["split"]}\n' for row in read(table)]
    (tmp_path / 'table.csv').write_text('path,label,split\n' + ''.join(lines))
    settings = dict(img_size=32, epochs=1, batch_size=6, workers=0, device='cpu', bootstrap=20, model_kwargs=STUDENT)
    paths = dict(data_csv=str(tmp_path / 'table.csv'), data_dir=str(table.parent), output=str(tmp_path))
    result = train(TrainConfig(multi_label=True, experiment='x', **settings, **paths))
    assert "no image of split 'test' has the labels left, red, top" in caplog.text
    (network,) = read_networks([tmp_path / 'x'])
    assert network.result['macro_auroc'] is None
    assert network.result['log_loss'] == pytest.approx(result['models']['hdkd_student']['test']['log_loss'])
    assert main(['report', str(tmp_path / 'x'), '--mistakes', '1']) == 0


def test_fine_tuning_a_model_of_labels_on_classes(distilled, image_folder, tmp_path):
    """The new model gives an image one class, and says nothing of labels."""
    _, _, run = distilled
    config = TrainConfig(
        data_dir=str(image_folder),
        model=f'local-dir:{run / "student" / "best"}',
        img_size=32,
        epochs=1,
        batch_size=8,
        workers=0,
        device='cpu',
        bootstrap=0,
        output=str(tmp_path),
        experiment='classes',
    )
    train(config)
    saved = json.loads((tmp_path / 'classes' / 'best' / 'config.json').read_text())
    assert not {'problem_type', 'thresholds'} & {*saved, *saved['pretrained_cfg']}
    assert not load_classifier(tmp_path / 'classes', InferenceConfig(device='cpu')).is_multi_label


def test_converted_training_state(distilled, tmp_path, caplog):
    _, _, run = distilled
    assert main(['convert', str(run / 'student' / 'last.pth'), str(tmp_path / 'folder')]) == 0
    saved = json.loads((tmp_path / 'folder' / 'config.json').read_text())
    assert saved['problem_type'] == 'multi_label_classification'
    assert load_classifier(tmp_path / 'folder').thresholds.tolist() == [0.5] * 3
    assert 'has no thresholds, which validation images choose' in caplog.text


def test_a_given_teacher(distilled, table, tmp_path, capsys):
    _, _, run = distilled
    common = ['distill', '--data-csv', str(table), '--img-size', '32', '--epochs', '1', '-b', '6', '-j', '0']
    common += ['--device', 'cpu', '--bootstrap', '0', '--no-report', '--output', str(tmp_path), '--experiment', 'x']
    common += ['--model-kwargs', *(f'{name}={value!r}' for name, value in STUDENT.items())]
    given = ['--teacher-checkpoint', str(run / 'teacher')]
    lines = [f'{row["path"]},{NAMES[i % 3]},{row["split"]}\n' for i, row in enumerate(read(table))]
    (table.parent / 'single.csv').write_text('path,label,split\n' + ''.join(lines))
    assert main([*common, *given, '--data-csv', str(table.parent / 'single.csv')]) == 1
    assert 'gives an image any number of labels, the data one class' in capsys.readouterr().err
    assert main([*common, *given, '--multi-label', '--method', 'kd', 'at']) == 0
    result = json.loads((tmp_path / 'x' / 'teacher' / 'metrics.json').read_text())
    expected = json.loads((run / 'teacher' / 'metrics.json').read_text())
    keys = ('auroc', 'ap', 'f1', 'threshold', 'support', 'predicted')
    found, wanted = (
        [[scores[key] for key in keys] for scores in metrics['test']['per_class'].values()]
        for metrics in (result, expected)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    again, before = (load_classifier(folder / 'teacher').thresholds for folder in (tmp_path / 'x', run))
    np.testing.assert_allclose(again, before)


def test_stored_logits_and_studies(distilled, table, tmp_path):
    config, _, run = distilled
    common = ['--data-csv', str(table), '--multi-label', '--img-size', '32', '-b', '6', '-j', '0', '--device', 'cpu']
    student = ['--model-kwargs', *(f'{name}={value!r}' for name, value in STUDENT.items())]
    given = ['--teacher-checkpoint', str(run / 'teacher')]
    logits = str(tmp_path / 'logits.safetensors')
    assert main(['cache-logits', *common, *student, *given, '--views', '2', '--out', logits]) == 0
    settings = [*common, *student, '--epochs', '2', '--bootstrap', '0', '--output', str(tmp_path)]
    learn = ['distill', *settings, '--method', 'kd', '--teacher-logits', logits, '--no-report', '--experiment', 'x']
    assert main(learn) == 0
    study = ['study', *settings, *given, '--methods', 'none', 'kd', '--seeds', '1', '2', '--experiment', 's']
    assert main(study) == 0
    rows = read(tmp_path / 's' / 'results.csv')
    assert {'test_macro_auroc', 'test_mean_ap', 'mean_ap_difference', 'val_macro_f1'} <= set(rows[0])
    assert 'Macro AUROC' in (tmp_path / 's' / 'study.html').read_text()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--mixup', '0.2'], '--mixup 0.2 is for images of one class each, not for --multi-label: leave it out.'),
        (['--sampler', 'balanced'], '--sampler balanced is for images of one class each'),
        (['--class-weights', 'effective'], 'or use --class-weights balanced'),
        (['--select-metric', 'balanced_accuracy'], 'not defined for images of several labels: choose from macro_auroc'),
    ],
)
def test_settings_of_one_class(flags, message, table, capsys):
    command = ['train', '--data-csv', str(table), '--multi-label', '--img-size', '32', *flags]
    assert main(command) == 1
    assert message in capsys.readouterr().err


def test_metrics_of_labels_need_labels(image_folder, capsys):
    assert main(['train', '--data-dir', str(image_folder), '--select-metric', 'mean_ap']) == 1
    assert '--select-metric mean_ap is not defined for images of one class' in capsys.readouterr().err


def test_without_validation_images_thresholds_are_one_half(table, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = [row for row in read(table) if row['split'] != 'val']
    (tmp_path / 'table.csv').write_text(
        'path,label,split\n' + ''.join(f'{row["path"]},{row["label"]},{row["split"]}\n' for row in rows)
    )
    settings = dict(img_size=32, epochs=1, batch_size=6, workers=0, device='cpu', bootstrap=0, model_kwargs=STUDENT)
    paths = dict(data_csv=str(tmp_path / 'table.csv'), data_dir=str(table.parent), output=str(tmp_path))
    train(TrainConfig(multi_label=True, experiment='x', **settings, **paths))
    assert 'no val split chooses the thresholds of the labels: each is 0.5' in caplog.text
    assert load_classifier(tmp_path / 'x').thresholds.tolist() == [0.5] * 3


def test_other_models_and_labels(distilled, table, image_folder, tmp_path, capsys):
    """A model of classes is not asked for labels, and thresholds are of the model's labels."""
    _, _, run = distilled
    args = ['--data-csv', str(table), '--bootstrap', '0', '-j', '0', '--device', 'cpu']
    assert main(['eval', 'hdkd_student.brain_mri', '--multi-label', *args]) == 1
    assert 'gives each image one class: drop --multi-label, or train a model with it' in capsys.readouterr().err
    assert main(['push', str(run / 'student'), 'us/net', '--out', str(tmp_path / 'hub')]) == 0
    path = tmp_path / 'hub' / 'config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(config, thresholds=dict(left=0.5))))
    assert main(['eval', str(tmp_path / 'hub'), *args]) == 1
    assert 'its thresholds are of the labels left, not of red, top' in capsys.readouterr().err
    path.write_text(json.dumps(dict(config, thresholds=dict(left=7))))
    assert main(['eval', str(tmp_path / 'hub'), *args]) == 1
    assert (
        f"Model 'local-dir:{tmp_path / 'hub'}': its thresholds must be numbers from 0 to 1" in capsys.readouterr().err
    )
