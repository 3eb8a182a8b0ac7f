"""fastai: learners of the networks, and predictions equal to `hdkd predict`'s."""

import numpy as np
import pytest
import timm
import torch
from fastai.vision.all import (
    CrossEntropyLossFlat,
    ImageDataLoaders,
    Learner,
    Normalize,
    get_image_files,
    vision_learner,
)
from helpers import TINY_STUDENT, write_images

import hdkd_timm

SIZES = {k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')}


def load(folder, **kwargs):
    return ImageDataLoaders.from_folder(folder, 'train', 'test', bs=4, num_workers=0, device='cpu', **kwargs)


@pytest.mark.parametrize('name', ['hdkd_student', 'hdkd_student_plain', 'hdkd_student_s4', 'hdkd_teacher'])
def test_vision_learner(name, image_folder):
    size = {k: v for k, v in SIZES.items() if 'student' in name or k == 'dims'}
    if 'student' not in name:
        size['depths'] = (1, 1, 1)
    learn = vision_learner(load(image_folder), name, pretrained=False, img_size=40, **size)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1)
        predicted, _ = learn.get_preds()
    assert predicted.shape == (12, 3)
    torch.testing.assert_close(predicted.sum(dim=1), torch.ones(12))


def test_vision_learner_with_released_weights(image_folder):
    learn = vision_learner(load(image_folder), 'hdkd_student.brain_mri')
    released = timm.create_model('hdkd_student.brain_mri', pretrained=True)
    weights = learn.model[0].state_dict()
    assert torch.equal(weights['model.blocks.0.attn.qkv.weight'], released.state_dict()['blocks.0.attn.qkv.weight'])
    normalize = next(transform for transform in learn.dls.after_batch.fs if isinstance(transform, Normalize))
    assert normalize.mean.flatten().tolist() == pytest.approx(released.pretrained_cfg['mean'])


def test_predictions(tmp_path):
    for split in ('train', 'test'):
        write_images(tmp_path / split, number=1, size=224)
    model = timm.create_model('hdkd_student.brain_mri', pretrained=True)
    cfg = timm.data.resolve_model_data_config(model)
    dls = load(tmp_path, batch_tfms=Normalize.from_stats(cfg['mean'], cfg['std']))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat())
    files = sorted(get_image_files(tmp_path / 'test'))
    with learn.no_bar():
        probs, _ = learn.get_preds(dl=dls.test_dl(files))
    _, expected, _ = hdkd_timm.predict('hdkd_student.brain_mri', list(map(str, files)))
    np.testing.assert_allclose(probs, expected, atol=1e-5)
