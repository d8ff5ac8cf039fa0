"""Trained networks for other programs: ONNX graphs (onnx.py), weights in PyTorch's layout (torch_layout.py)."""
