"""The ``lite`` preset: a network and a refiner that two CPU cores can run and train."""

from guava.model.lite.cost import count_macs, count_parameters
from guava.model.lite.network import LiteNetwork
from guava.model.lite.prior import avatar_prior
from guava.model.lite.refiner import FoldedLiteRefiner, LiteRefiner, lite_refiner
from guava.model.lite.source import SurfaceView
from guava.model.lite.tables import UVTables, uv_tables

__all__ = [
    "FoldedLiteRefiner",
    "LiteNetwork",
    "LiteRefiner",
    "SurfaceView",
    "UVTables",
    "avatar_prior",
    "count_macs",
    "count_parameters",
    "lite_refiner",
    "uv_tables",
]
