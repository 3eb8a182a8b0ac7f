"""What the tests of the distillation methods share: the tensors of published code, and small pairs of networks."""

import re

import timm
from helpers import TINY_STUDENT, TINY_TEACHER, load_reference, strip_prefix

from hdkd_timm._compat import image_size
from hdkd_timm.distillation.networks import NetworkInfo, Pair
from hdkd_timm.distillation.outputs import Outputs

ERRORS = []  # (what was compared, largest error by the largest entry), for docs/method_parity.py


def load_method_reference(name, seed=0):
    """Tensors of a method that published code wrote, and case -> its settings, numbers where they are numbers."""
    tensors, metadata = load_reference(f'methods/{name}_seed{seed}')
    cases = {case: dict(re.findall(r'(\w+)=(\S+)', words)) for case, words in sorted(metadata.items())}
    return tensors, {case: {k: _number(v) for k, v in found.items()} for case, found in cases.items() if 'case' in case}


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def assert_matches(actual, expected, what='', tolerance=1e-4):
    """Equal to `tolerance` of the largest entry, which is what the published tensors are good for.

    The error is noted in `ERRORS` by `what` is compared.
    """
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert actual.shape == expected.shape
    assert error < tolerance, f'largest error {error:.1e} of the largest entry{f" of the {what}" if what else ""}'
    ERRORS.append((what, error))


def create_pair(student=None, teacher=None, train_targets=None):
    """The pair of two timm models; HDKD's tiny networks by default."""
    student = student or timm.create_model('hdkd_student', **TINY_STUDENT)
    teacher = teacher or timm.create_model('hdkd_teacher', **TINY_TEACHER)
    infos = (NetworkInfo.of(m, role, image_size(m)) for m, role in ((student, 'student'), (teacher, 'teacher')))
    return Pair(*infos, train_targets)


def logit_outputs(student_logits, teacher_logits):
    """What a method of the logits sees."""
    return Outputs(student_logits), Outputs(teacher_logits)


def check_published_logit_loss(name, loss_of, seed=0, select=lambda settings: True):
    """Compare a loss of logits, `loss_of(student, teacher, target, settings)`, with the tensors of published code.

    Returns the number of cases.
    """
    tensors, cases = load_method_reference(name, seed)
    cases = {case: settings for case, settings in cases.items() if select(settings)}
    for case, settings in cases.items():
        logits = tensors['student_logits'].clone().requires_grad_()
        loss = loss_of(logits, tensors['teacher_logits'], tensors.get('target'), settings)
        loss.backward()
        assert_matches(loss.detach(), tensors[f'{case}.loss'], 'loss', 1e-5)
        assert_matches(logits.grad, tensors[f'{case}.grad.student_logits'], 'gradient')
    return len(cases)


def load_layer(layer, tensors, prefix):
    """Load the tensors that start with the prefix into a layer. Returns the layer."""
    layer.load_state_dict(strip_prefix(tensors, prefix))
    return layer
