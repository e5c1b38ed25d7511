"""The encoder-decoder and the heads that objectives put on it."""

from hssl.networks.heads import GridPoolHead, PixelHead, PointHead, at_points, grid_pool
from hssl.networks.unet import SegmentationNetwork, UNet, build_network, to_device

__all__ = [
    "GridPoolHead",
    "PixelHead",
    "PointHead",
    "SegmentationNetwork",
    "UNet",
    "at_points",
    "build_network",
    "grid_pool",
    "to_device",
]
