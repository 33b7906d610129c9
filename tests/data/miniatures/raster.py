"""RASTER: an entry of examples/paper.yaml of kind raster, or NAME@VARIANT -> who writes its miniature."""

from __future__ import annotations

from tests.data.miniatures.expected import Writer
from tests.data.miniatures.raster_maps import MAPS
from tests.data.miniatures.raster_salient import SALIENT

RASTER: dict[str, Writer] = SALIENT | MAPS
