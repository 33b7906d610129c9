"""Photos that cannot be read when it is their turn: what a stage says of them in the end, and when it tries again."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sum.data.frames import load_photo
from sum.data.records import ImageRecord
from sum.errors import DataError, StorageError

SHOWN = 10  # photos that an error names
log = logging.getLogger(__name__)


def is_lost(record: ImageRecord) -> bool:
    """Whether the photo still cannot be read, or is another than at ingest."""
    try:
        load_photo(record)
    except (DataError, StorageError):
        return True
    return False


def judge_lost(lost: Mapping[str, str], *, on_bad: str) -> None:
    """lost: image id -> why. Raises DataError when there are some and the policy, `pseudo_label.on_bad`, is to fail."""
    if not lost:
        return
    shown = "\n".join([f"  {why}" for why in lost.values()][:SHOWN])
    if on_bad == "fail":
        raise DataError(
            f"{len(lost)} unlabelled images cannot be used; mend or remove them, or set pseudo_label.on_bad to skip. "
            f"What was made of the others is kept.\n{shown}"
        )
    log.warning("%d unlabelled images cannot be used and were left out:\n%s", len(lost), shown)
