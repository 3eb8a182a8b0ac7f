"""A trained model for others: exported to ONNX, OpenVINO or torch.export, or on the Hugging Face Hub with a model card.

Imports `evaluation`, `data`, `models` and `utils`; independent of `training` and `analysis`.
"""
