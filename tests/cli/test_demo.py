from hdkd_timm.cli import main


def test_settings_of_the_demo_can_be_changed(tmp_path, trained):
    (tmp_path / 'c.yaml').write_text('epochs: 2')
    assert main(['demo', '--data-dir', 'd']) == 0
    assert main(['demo', '--data-dir', 'd', '--no-student-alone', '--config', str(tmp_path / 'c.yaml')]) == 0
    assert [(c.student_alone, c.channels_last, c.img_size, c.epochs) for c in trained] == [
        (True, True, 64, 6),
        (False, True, 64, 2),
    ]


def test_nothing_is_drawn_before_the_flags_are_checked(tmp_path, trained, capsys):
    for args in (['--lr', '-1'], ['--teacher-label-names', 'a']):
        assert main(['demo', '--output', str(tmp_path), *args]) == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_draws_images(tmp_path, trained, capsys):
    for _ in range(2):  # once
        assert main(['demo', '--output', str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(f"Drew phantom images in '{tmp_path}/phantoms'.") == 1
    assert [c.data_dir for c in trained] == [str(tmp_path / 'phantoms')] * 2
    assert list((tmp_path / 'phantoms' / 'train').glob('*/*'))
