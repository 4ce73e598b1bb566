"""Multi-Attention-Weight attention for pretrained text encoders."""

__version__ = "0.1.0"
