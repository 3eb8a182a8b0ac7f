import timm
import torch
from helpers import load_reference, strip_prefix

from hdkd_timm.cli import main


def test_convert_command(tmp_path, capsys):
    reference, _ = load_reference('student_seed0')
    torch.save(strip_prefix(reference, 'state.'), tmp_path / 'a.pth')
    assert main(['convert', str(tmp_path / 'a.pth'), str(tmp_path / 'out'), '--model-kwargs', 'head_dim=8']) == 0
    assert 'hdkd_student with 5 classes' in capsys.readouterr().out
    assert timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).num_classes == 5
