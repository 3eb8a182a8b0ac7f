"""Studies of tiny networks."""

import pytest
from training_helpers import STUDENT, save_teacher


@pytest.fixture
def settings(image_folder, tmp_path):
    save_teacher(tmp_path / 'given')
    return dict(
        data_dir=str(image_folder),
        img_size=32,
        epochs=1,
        batch_size=4,
        workers=0,
        device='cpu',
        bootstrap=0,
        model_kwargs=STUDENT,
        teacher_checkpoint=str(tmp_path / 'given'),
        output=str(tmp_path / 'runs'),
        experiment='study',
    )
