from hdkd_timm.cli import main


def test_eval_with_the_settings_of_a_run(run_of_a_student, capsys):
    assert main(['eval', str(run_of_a_student), '--config', str(run_of_a_student / 'config.yaml')]) == 0
    assert "12 images of split 'test'" in capsys.readouterr().out
    (run_of_a_student / 'other.yaml').write_text('wings: 2')
    assert main(['eval', str(run_of_a_student), '--config', str(run_of_a_student / 'other.yaml')]) == 1
    assert "Unknown setting 'wings' in" in capsys.readouterr().err
