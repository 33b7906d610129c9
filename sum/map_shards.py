"""Shards of uncertainty maps on their way to the disk: of stored labels, or beside labels that are being made.

A shard of maps lies in its work folder under the digest of the labels it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sum.data.shards import PENDING, UNCERTAINTY, ShardInfo, ShardWriter, write_shard
from sum.mapping import MapMaker, ToMap
from sum.shares import Share

AddMaps = Callable[[Sequence[ToMap]], None]


def map_name(labels: ShardInfo) -> str:
    """File name of the maps about a shard of labels."""
    return f"{labels.digest[:40]}-{labels.shards}.arrow"  # the same labels in more shards: another header


@dataclass(frozen=True, slots=True)
class MapShards:
    """Who makes maps, and where they are kept."""

    maker: MapMaker
    share: Share

    @contextmanager
    def write(self, labels: ShardInfo) -> Iterator[AddMaps]:
        """Maps about a finished shard of labels; yields what takes images, some at a time."""
        with write_shard(
            self.share.folder / map_name(labels), kind=UNCERTAINTY, side=labels.side, shards=labels.shards
        ) as shard:
            yield self._adder(shard)
            shard.about(labels)

    @contextmanager
    def beside(self, labels: ShardWriter, *, name: str) -> Iterator[AddMaps]:
        """The same while the labels are being made; name: of their file. Shown to others when complete."""
        pending, info = self.share.folder / f"{PENDING}{name}", labels.info
        with write_shard(pending, kind=UNCERTAINTY, side=info.side, shards=info.shards) as shard:
            yield self._adder(shard)
            shard.about(labels.info)
        final = map_name(labels.info)
        pending.replace(self.share.folder / final)
        self.share.show(final)

    def _adder(self, shard: ShardWriter) -> AddMaps:
        def add(images: Sequence[ToMap]) -> None:
            for image, made in zip(images, self.maker.rows(images), strict=True):
                shard.add(image.image_id, made.rows)
                if image.lost:
                    shard.skip(image.image_id, image.lost)
                for total, value in made.counts.items():
                    shard.count(total, value)

        return add
