"""Trained networks for other programs: ONNX graphs (onnx.py, layers.py) and weights as PyTorch names them (torch_layout.py)."""
