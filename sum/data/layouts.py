"""How a data set lies on disk or in a bucket. LAYOUTS: `datasets.NAME.kind` -> function from a Source to jobs.

A layout lists and pairs names; its jobs, one an image, read the files and may run in threads. A folder or list that
cannot be used at all is a DataError at once; a single bad file is a Problem, so that all are reported together.
"""

from __future__ import annotations

from sum.data.coco import coco_layout
from sum.data.folders import images_layout
from sum.data.label_studio import label_studio_layout
from sum.data.labelme import labelme_layout
from sum.data.rasters import raster_layout
from sum.data.sa1b import sa1b_layout
from sum.data.sources import Layout
from sum.data.via import via_layout
from sum.data.yolo import yolo_layout

LAYOUTS: dict[str, Layout] = {
    "raster": raster_layout,
    "coco": coco_layout,
    "images": images_layout,
    "via": via_layout,
    "sa1b": sa1b_layout,
    "labelme": labelme_layout,
    "yolo": yolo_layout,
    "label_studio": label_studio_layout,
}
