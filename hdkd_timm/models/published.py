"""Checkpoints of the published code (github omarsherif200/HDKD at f7c7dae): its keys and ours."""

import re
from typing import Any, Dict

import torch
from timm.models import clean_state_dict

__all__ = ['convert_state_dict']

# regular expression -> our name, applied in this order
_PUBLISHED_KEYS = (
    (r'^stage1\.(\d+)\.0\.', r'stages.0.\1.conv.'),
    (r'^stage1\.(\d+)\.1\.', r'stages.0.\1.bn.'),
    (r'^stage2\.', r'stages.1.'),
    (r'^stage3\.', r'stages.2.'),
    (r'\.conv\.norm\.', r'.pre_norm.'),
    (r'\.conv\.fn\.0\.', r'.conv_pw.'),
    (r'\.conv\.fn\.1\.', r'.bn1.'),
    (r'\.conv\.fn\.3\.', r'.conv_dw.'),
    (r'\.conv\.fn\.4\.', r'.bn2.'),
    (r'\.conv\.fn\.6\.channel_attention\.fc\.0\.', r'.attn.channel.fc1.'),
    (r'\.conv\.fn\.6\.channel_attention\.fc\.2\.', r'.attn.channel.fc2.'),
    (r'\.conv\.fn\.6\.spatial_attention\.conv1\.', r'.attn.spatial.conv.'),
    (r'\.conv\.fn\.6\.fc\.0\.', r'.attn.fc1.'),
    (r'\.conv\.fn\.6\.fc\.2\.', r'.attn.fc2.'),
    (r'\.conv\.fn\.7\.', r'.conv_pwl.'),
    (r'\.conv\.fn\.8\.', r'.bn3.'),
    (r'^(stages\.[12]\.\d+)\.proj\.', r'\1.shortcut.proj.'),
    (r'^fn1\.', r'head_hidden.'),
    (r'^classifier\.', r'head.'),
    (r'^head_cls\.', r'head.'),
    (r'^head_distill\.', r'head_dist.'),
    (r'^DFLT_module\.to_patch_embedding\.1\.', r'patch_embed.norm1.'),
    (r'^DFLT_module\.to_patch_embedding\.2\.', r'patch_embed.proj.'),
    (r'^DFLT_module\.to_patch_embedding\.3\.', r'patch_embed.norm2.'),
    (r'^DFLT_module\.pos_embedding$', r'pos_embed'),
    (r'^DFLT_module\.cls_token$', r'cls_token'),
    (r'^DFLT_module\.distill_token$', r'dist_token'),
    (r'^DFLT_module\.transformer\.norm\.', r'norm.'),
    (r'^DFLT_module\.transformer\.layers\.(\d+)\.0\.norm\.', r'blocks.\1.norm.'),
    (r'^DFLT_module\.transformer\.layers\.(\d+)\.0\.to_qkv\.', r'blocks.\1.attn.qkv.'),
    (r'^DFLT_module\.transformer\.layers\.(\d+)\.0\.to_out\.0\.', r'blocks.\1.attn.proj.'),
    (r'^DFLT_module\.transformer\.layers\.(\d+)\.1\.net\.0\.', r'blocks.\1.mlp.fc1.'),
    (r'^DFLT_module\.transformer\.layers\.(\d+)\.1\.net\.3\.', r'blocks.\1.mlp.fc2.'),
)


def convert_state_dict(state_dict: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    """Rename the keys of the published code's state dict to ours; a state dict with our keys keeps them.

    Accepts a bare state dict or a checkpoint that holds one under 'state_dict' or 'model', with or without the prefix
    'module.' of (distributed) data parallel.
    """
    for key in ('state_dict', 'model'):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]
            break
    state_dict = clean_state_dict(state_dict)
    if not any(name.startswith('stage1.') for name in state_dict):
        return state_dict
    converted = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in _PUBLISHED_KEYS:
            name = re.sub(pattern, replacement, name)
        if re.search(r'\.attn\.fc[12]\.weight$', name) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # squeeze-and-excitation: linear layers there, 1x1 convolutions here
        converted[name] = tensor
    return converted
