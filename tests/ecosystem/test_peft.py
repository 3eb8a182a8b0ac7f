"""peft: a LoRA step changes adapters and heads alone, and the merged network is a model folder like any other."""

import timm
import torch
from helpers import create_student
from peft import LoraConfig, PeftModel, get_peft_model
from snippets import ECOSYSTEM

from hdkd_timm.models.checkpoint import save_model

TARGETS, HEADS = r'blocks\.\d+\.attn\.(qkv|proj)', ['head', 'head_dist']


def train_step(model, freeze_statistics=True):
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS, modules_to_save=HEADS)).train()
    if freeze_statistics:
        model.stages.eval()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(adapted(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    changed = [name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])]
    return adapted.eval(), changed


def test_settings_are_those_of_the_page():
    page = (ECOSYSTEM / 'peft.md').read_text(encoding='utf-8')
    assert f"r'{TARGETS}'" in page
    assert f'modules_to_save={HEADS}' in page


def test_a_step_changes_adapters_and_heads():
    adapted, changed = train_step(create_student())
    assert len(changed) == 2 * 2 * 2 + 2 * 2  # A and B of qkv and proj in two blocks; weights and biases of two heads
    assert all('.lora_' in name or 'modules_to_save' in name for name in changed)
    total = sum(p.numel() for p in adapted.parameters())
    assert 0 < sum(p.numel() for p in adapted.parameters() if p.requires_grad) < total / 5


def test_statistics_move_in_training_mode():
    _, changed = train_step(create_student(), freeze_statistics=False)
    assert any(name.endswith('running_mean') for name in changed)


def test_adapter_file(tmp_path):
    """Loaded onto the network that it was trained on, it gives the outputs of the trained one."""
    torch.save(create_student().state_dict(), tmp_path / 'start.pth')
    start = create_student()
    start.load_state_dict(torch.load(tmp_path / 'start.pth'))
    adapted, _ = train_step(start)
    adapted.save_pretrained(tmp_path / 'adapter')
    again = create_student()
    again.load_state_dict(torch.load(tmp_path / 'start.pth'))
    loaded = PeftModel.from_pretrained(again, tmp_path / 'adapter').eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), adapted(images))


def test_merged_network(tmp_path):
    adapted, _ = train_step(create_student())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = adapted(images)
        save_model(adapted.merge_and_unload(), tmp_path / 'merged', list('abcde'))
        model = timm.create_model(f'local-dir:{tmp_path / "merged"}', pretrained=True).eval()
        torch.testing.assert_close(model(images), expected)
