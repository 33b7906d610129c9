"""Miniatures of the paper's COCO, VIA and SA-1B sets: entry of examples/paper.yaml (@ a variant) -> writer; after a blank, how it is packed."""

from __future__ import annotations

from tests.data.miniatures.coco_entityseg import val_writer, write_train
from tests.data.miniatures.coco_parts import fashionpedia_writer, paco_writer
from tests.data.miniatures.coco_scenes import write_ibd, write_ishape, write_trashcan
from tests.data.miniatures.expected import Writer
from tests.data.miniatures.sa1b_shards import write_folder, write_photos, write_shards
from tests.data.miniatures.via_ndd20 import write_ndd20

DOCUMENTS: dict[str, Writer] = {
    "sa_250k": write_photos,
    "sa_250k@human": write_folder,
    "sa_250k@human shards": write_shards,
    "entityseg": write_train,
    "entityseg_0": val_writer("entity_01_11580"),
    "entityseg_1": val_writer("entity_02_11598"),
    "entityseg_2": val_writer("entity_03_10049"),
    "fashionpedia": fashionpedia_writer(0),
    "fashionpedia_subpart": fashionpedia_writer(1),
    "paco": paco_writer(0),
    "paco@objects_and_parts": paco_writer(1),
    "ishape": write_ishape,
    "trashcan": write_trashcan,
    "ibd": write_ibd,
    "ndd20": write_ndd20,
}
