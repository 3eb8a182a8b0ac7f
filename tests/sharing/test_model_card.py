"""Model cards show names and numbers as they are."""

import re

import pytest
import yaml

from hdkd_timm import DistillConfig
from hdkd_timm.evaluation.metrics import METRIC_NAMES
from hdkd_timm.sharing.model_card import escape, write_card

CONFIG = dict(
    architecture='hdkd_student', num_classes=2, label_names=['a', 'b'], pretrained_cfg=dict(input_size=[1, 32, 48])
)
SCORES = dict(precision=0.5, recall=1.0, f1=2 / 3, support=12)
RESULT = dict(
    dict.fromkeys(METRIC_NAMES, 0.9),
    images=24,
    macro_auroc=None,
    per_class={'a': dict(SCORES, recall_95=[0.7354, 1.0]), 'b': SCORES},
)


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('<b>|a|', '&#60;b&#62;&#124;a&#124;'),
        ('a_b*c', 'a\\_b\\*c'),
        ('[x](y)', '\\[x\\](y)'),
        ('# a', '\\# a'),
        ('http://evil.example', 'http&#58;//evil.example'),
        ('www.evil.example', 'www&#46;evil.example'),
        ('@user', '&#64;user'),
        ('$x$', '&#36;x&#36;'),
        ('- a', '&#45; a'),
        ('a\nb', 'a b'),
        ('a & b', 'a &#38; b'),
        ('a|b\n<i>', 'a&#124;b &#60;i&#62;'),
        ('\x1b[m\u202ea', '\\\\x1b\\[m\\\\u202ea'),
        ('0.001', '0.001'),
        ('plain name', 'plain name'),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown


def test_card_of_a_model_without_a_run():
    card = write_card('us/net', dict(CONFIG, label_names=['<b>|x', 'a_b']))
    assert '`hdkd_student` ([HDKD]' in card
    assert 'for 2 classes: &#60;b&#62;&#124;x, a\\_b. Images of 32 x 48 pixels, 1 channels.' in card
    assert "timm.create_model('hf-hub:us/net', pretrained=True)" in card
    assert "AutoModelForImageClassification.from_pretrained('us/net', dtype=torch.float32)" in card
    assert '## Results\n\nNone were uploaded with the model.\n\n## Training\n\nThe uploader did not' in card
    assert 'Unknown: ask the uploader' in card
    assert 'model-index' not in card
    assert card.endswith('}\n```\n')
    assert '\n\n\n' not in card


def test_metadata():
    card = write_card('us/net', CONFIG, dict(test=RESULT), license='cc0-1.0', origins=['From elsewhere.'])
    metadata = yaml.safe_load(card.split('---\n')[1])
    (index,) = metadata.pop('model-index')
    assert metadata.items() >= dict(library_name='timm', license='cc0-1.0', pipeline_tag='image-classification').items()
    (result,) = index['results']
    assert (index['name'], result['dataset']['split']) == ('net', 'test')
    values = {m['type']: m['value'] for m in result['metrics']}
    assert values == dict.fromkeys(METRIC_NAMES.keys() - {'macro_auroc'}, 0.9)
    assert '## Licence\n\ncc0-1.0. From elsewhere.\n' in card


@pytest.mark.parametrize('split', ['test', 'val'])
def test_results(split):
    """Results of older runs, without intervals of classes, are shown too."""
    card = write_card('us/net', CONFIG, {split: RESULT})
    assert f'24 images of split {split}, with 95 % intervals.' in card
    assert ('optimistically biased' in card) == (split == 'val')
    assert '| a | 0.500 | 1.000 | 0.735 to 1.000 | 0.667 | 12 |' in card
    assert '| b | 0.500 | 1.000 | – | 0.667 | 12 |' in card
    assert '| accuracy | 90.0 % | – |' in card
    assert '| macro AUROC | – | – |' in card
    unseen = dict(RESULT, per_class={'a': SCORES, 'b': dict(SCORES, support=0, predicted=0)})
    assert '| b | – | – | – | – | 0 |' in write_card('us/net', CONFIG, {split: unseen})


def test_counts_of_many_classes_are_rows():
    few = write_card('us/net', CONFIG, counts={'train': {'a': 1, 'b': 2}})
    assert '| split | a | b | all |\n| --- | ---: | ---: | ---: |\n| train | 1 | 2 | 3 |\n' in few
    many = write_card('us/net', CONFIG, counts={'train': {f'c{i}': i for i in range(50)}, 'test': {'c3': 7}})
    assert '| class | train | test |' in many
    assert '| c3 | 3 | 7 |' in many
    assert f'| all | {sum(range(50)):,} | 7 |' in many


def test_settings_are_those_of_the_network():
    settings = vars(DistillConfig(data_dir='data', lr=1e-3, teacher_lr=7e-4, teacher_epochs=9, tau=3.0))
    shown = {}
    for name in ('teacher', 'student_alone', 'student'):
        card = write_card('us/net', CONFIG, dict(test=RESULT, name=name), settings)
        shown[name] = dict(re.findall(r'^\| `(\w+)` \| (.*) \|$', card, re.M))
    assert shown['teacher'].items() >= dict(model='hdkd\\_teacher', lr='0.0007', epochs='9').items()
    assert shown['student_alone'].items() >= dict(model='hdkd\\_student', lr='0.001', epochs='100').items()
    assert [name for name in shown if 'tau' in shown[name]] == ['student']
    assert shown['student']['tau'] == '3.0'


def test_settings_of_other_methods():
    settings = vars(DistillConfig(method=('kd', 'at'), method_args={'kd': {'tau': 2.0}}, init_from_teacher=('3:0,4',)))
    card = write_card('us/net', CONFIG, dict(test=RESULT, name='student'), settings)
    shown = dict(re.findall(r'^\| `(\w+)` \| (.*) \|$', card, re.M))
    assert (shown['method'], shown['method_args']) == ('kd at', 'kd&#58; tau&#58; 2.0')
    assert shown['init_from_teacher'] == '3&#58;0,4'
    assert not {'tau', 'alpha', 'kd_type'} & set(shown)  # those of HDKD
    earlier = {name: value for name, value in vars(DistillConfig(tau=3.0)).items() if 'method' not in name}
    shown = dict(
        re.findall(
            r'^\| `(\w+)` \| (.*) \|$', write_card('us/net', CONFIG, dict(test=RESULT, name='student'), earlier), re.M
        )
    )
    assert shown['tau'] == '3.0'
    assert 'method_args' not in shown


def test_texts_are_not_templates():
    card = write_card(
        'us/net',
        dict(CONFIG, label_names=['{{ 7 * 7 }}', 'b']),
        data='From {{ 7 * 7 }}.',
        load='local-dir:x',
        more={'Stages': 'One {% if %} stage.'},
    )
    assert 'From {{ 7 * 7 }}.' in card
    assert "timm.create_model('local-dir:x', pretrained=True)" in card
    assert '\n\n## Stages\n\nOne {% if %} stage.\n\n## Intended use and limits\n' in card


def test_card_of_another_network():
    """It is no HDKD, has no `img_size`, and without validation images no epoch was selected."""
    config = dict(CONFIG, architecture='resnet18')
    metrics = dict(test=RESULT, name='resnet18', epoch=4, epochs=5, train_seconds=9.0)
    card = write_card('us/net', config, metrics, {}, {'train': {'a': 3, 'b': 3}, 'test': {'a': 3, 'b': 3}})
    assert '`resnet18` for 2 classes: a, b.' in card
    assert 'For other classes and channels, pass `num_classes=` and `in_chans=` as with any timm model.' in card
    assert 'Epoch 5 of 5, the last one, as no validation images selected another, 9 s of training.' in card
    assert 'knowledge-distillation' not in card
    distilled = write_card('us/net', config, dict(metrics, name='student'))
    assert 'Best epoch 5 of 5, 9 s of training.' in distilled
    assert '- knowledge-distillation' in distilled


def test_settings_of_a_method_of_one_of_several_teachers():
    settings = vars(DistillConfig(method=('hdkd:1', 'kd:2'), tau=3.0))
    card = write_card('us/net', CONFIG, dict(test=RESULT, name='student'), settings)
    assert dict(re.findall(r'^\| `(\w+)` \| (.*) \|$', card, re.M))['tau'] == '3.0'
