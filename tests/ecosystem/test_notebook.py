"""examples/first_steps.ipynb runs on few images, and shows what is in its run folder."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from snippets import ROOT

from hdkd_timm.data.phantoms import KINDS
from hdkd_timm.evaluation.metrics import format_metric
from hdkd_timm.utils.csv_files import read_rows

NOTEBOOK = ROOT / 'examples' / 'first_steps.ipynb'
FEW = 'NUM_TRAIN, NUM_TEST = 8, 3\nIMG_SIZE, EPOCHS = 32, 2'
VALUES = """
import json
print(json.dumps(dict(run=str(run), report=report, files=files, labels=[classes[row.argmax()] for row in probs],
                      explained=[e.label for e in explanations], path=row['path'], output=output.tolist())))
"""


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def is_parameters(cell):
    return 'parameters' in cell.metadata.get('tags', ())


def execute(folder):
    """Cells by id, after they ran in this folder with few images; 'values' prints what they have computed."""
    notebook = read_notebook()
    position = next(i for i, cell in enumerate(notebook.cells) if is_parameters(cell))
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell(FEW, id='few'))
    notebook.cells.append(nbformat.v4.new_code_cell(VALUES, id='values'))
    NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(folder)}}).execute()
    return {cell.id: cell for cell in notebook.cells}


def read_text(cell):
    """What a cell printed."""
    return ''.join(output.text for output in cell.outputs if output.output_type == 'stream' and output.name == 'stdout')


def count_pictures(cell):
    return sum('image/png' in output.get('data', {}) for output in cell.outputs)


def test_notebook_has_no_outputs_and_no_traces_of_a_machine():
    notebook = read_notebook()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert cell.outputs == []
            assert cell.execution_count is None
        assert set(cell.metadata) <= {'tags'}
    assert notebook.metadata == {
        'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
        'language_info': {'name': 'python'},
    }


def test_parameters_are_those_that_this_test_changes():
    [parameters] = filter(is_parameters, read_notebook().cells)
    names = re.compile(r'[A-Z_]{2,}')
    assert names.findall(re.sub('#.*', '', parameters.source)) == names.findall(FEW)


def test_links_lead_somewhere():
    links = [
        link
        for cell in read_notebook().cells
        if cell.cell_type == 'markdown'
        for link in re.findall(r'\]\(([^)]+)\)', cell.source)
    ]
    assert len(links) > 5
    for link in links:
        assert (NOTEBOOK.parent / link).exists(), link


def check_data(cells):
    counts = re.findall(r'(?m)^(\w+) +(\d+) +25\.0% +(\d+) +25\.0%$', read_text(cells['check']))
    assert counts == [(kind, '8', '3') for kind in KINDS]
    assert 'no image, near-duplicate or group is in two splits' in read_text(cells['check'])


def check_training(cells):
    epochs = re.findall(r'(?m)^(\w+) .*?(\d)/2\b', read_text(cells['distil']))
    assert epochs == [(name, epoch) for name in ('teacher', 'student_alone', 'student') for epoch in '12']


def check_table(cells, run):
    table = read_text(cells['results']).splitlines()[1:]
    assert [line.split()[0] for line in table] == ['teacher', 'student_alone', 'student']
    for line in table:
        name, parameters, accuracy = line.split()[:3]
        metrics = json.loads((run / name / 'metrics.json').read_text(encoding='utf-8'))
        assert metrics['test']['images'] == 12
        assert parameters == f'{metrics["parameters"]:,}'
        assert accuracy == format_metric('accuracy', metrics['test']['accuracy']).replace(' ', '')
        assert len(read_rows(run / name / 'summary.csv')) == 2


def check_report(cells, run, values):
    page = (run / 'report.html').read_text(encoding='utf-8')
    assert all(name in page for name in ('teacher', 'student_alone', 'student'))
    [shown] = (output.data['text/html'] for output in cells['report'].outputs if 'data' in output)
    assert values['report'] == f'{values["run"]}/report.html'  # browsers want it relative to the notebook
    assert f'src="{values["report"]}"' in shown


def check_new_images(values):
    found = [Path(file).parts[-3:] for file in values['files']]
    assert found == [('test', kind, f'{i:04d}.png') for kind in KINDS for i in range(2)]
    assert values['explained'] == values['labels']
    assert set(values['labels']) <= set(KINDS)


def check_pictures(cells):
    shown = {name: count_pictures(cell) for name, cell in cells.items() if cell.cell_type == 'code'}
    assert {name: number for name, number in shown.items() if number} == {
        'look': 2,
        'curves': 1,
        'predict': 1,
        'explain': 1,
    }


def check_loaded_network(cells, run, values):
    rows = {row['path']: row for row in read_rows(run / 'student' / 'predictions.csv')}
    expected = [float(rows[values['path']][f'prob_{kind}']) for kind in KINDS]
    assert values['output'] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1e-3
    printed = [line.split() for line in read_text(cells['save']).splitlines()]
    assert [(kind, float(loaded), float(written)) for kind, loaded, written in printed] == [
        (kind, pytest.approx(prob, abs=2e-4), pytest.approx(prob, abs=1e-4)) for kind, prob in zip(KINDS, expected)
    ]


def test_notebook(tmp_path, monkeypatch):
    """One test, as each process of the tests would run the notebook again."""
    for name in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR'):
        monkeypatch.setenv(name, str(tmp_path / 'jupyter'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    cells = execute(tmp_path)
    values = json.loads(read_text(cells['values']))
    run = tmp_path / values['run']
    check_data(cells)
    check_training(cells)
    check_table(cells, run)
    check_report(cells, run, values)
    check_new_images(values)
    check_pictures(cells)
    check_loaded_network(cells, run, values)
