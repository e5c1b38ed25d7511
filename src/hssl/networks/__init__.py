"""The encoder-decoder and the heads that objectives put on it."""

from hssl.networks.heads import GridPoolHead, PixelHead, PointHead, at_points, grid_pool
from hssl.networks.tiling import bf16_pays, predict_slabs, predict_volume
from hssl.networks.unet import SegmentationNetwork, UNet, build_network

__all__ = [
    "GridPoolHead",
    "PixelHead",
    "PointHead",
    "SegmentationNetwork",
    "UNet",
    "at_points",
    "bf16_pays",
    "build_network",
    "grid_pool",
    "predict_slabs",
    "predict_volume",
]
