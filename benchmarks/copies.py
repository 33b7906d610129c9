"""How well copies of photos are told from different photos: python benchmarks/copies.py FOLDER [--scale SHARE]

Reads the photos below FOLDER, makes copies in memory (JPEG 30 to 95, 0.25 to 2 times the size, mirrored, all at once;
also cropped and brightened, which nobody promises to find), and prints how many are found at several distances of the
perceptual hash, and how many pairs of different photos are. Frames of one video are left out by --group: a pattern
whose first group names the video. SHARE: of the photos, for a quick look.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sum.data.fingerprints import likeness, perceptual_hashes, thumbnail
from sum.data.images import read_image
from sum.data.sources import is_image_name

Picture = Image.Image
DISTANCES = (0, 4, 8, 10, 12, 14)
ALIKE = (0.9, 0.95)
FLIP = Image.Transpose.FLIP_LEFT_RIGHT


def _jpeg(picture: Picture, quality: int) -> Picture:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def _scaled(picture: Picture, share: float) -> Picture:
    return picture.resize((max(1, round(picture.width * share)), max(1, round(picture.height * share))))


def _cropped(picture: Picture) -> Picture:
    width, height = picture.size
    return picture.crop((width // 40, height // 40, width - width // 40, height - height // 40))


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    **{f"JPEG {quality}": lambda p, q=quality: _jpeg(p, q) for quality in (30, 50, 75, 95)},
    **{f"x {share}": lambda p, s=share: _scaled(p, s) for share in (0.25, 0.5, 2)},
    "mirrored": lambda p: p.transpose(FLIP),
    "mirrored, x 0.25, JPEG 30": lambda p: _jpeg(_scaled(p.transpose(FLIP), 0.25), 30),
    "(2.5 % cut off each side)": _cropped,
    "(20 % brighter)": lambda p: p.point([min(255, round(1.2 * value)) for value in range(256)] * 3),
}


def _look(pixels: NDArray[np.uint8]) -> tuple[int, int, NDArray[np.float32]]:
    plain, mirrored = (int(text, 16) for text in perceptual_hashes(pixels))
    return plain, mirrored, thumbnail(pixels)


def main(argv: Sequence[str]) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--group", default="")
    parser.add_argument("--suffix", default="", help="only files that end so, such as .jpg")
    options = parser.parse_args(argv)
    paths = sorted(path for path in options.folder.rglob("*") if is_image_name(path.name))
    paths = [path for path in paths if path.name.endswith(options.suffix)]
    paths = paths[:: max(1, round(1 / options.scale))]
    looks, copies = [], {name: [] for name in CHANGES}
    for number, path in enumerate(paths):
        pixels = read_image(str(path))
        looks.append(_look(pixels))
        if number % 4 == 0:
            for name, change in CHANGES.items():
                copies[name].append((number, _look(np.asarray(change(Image.fromarray(pixels))))))
    _print_copies(looks, copies)
    _print_different(paths, looks, group=options.group)


def _print_copies(looks: list, copies: dict) -> None:
    """% found at a distance, and the least alike."""
    print(f"{'copies':28}{'photos':>7}" + "".join(f"{f'D <= {d}':>9}" for d in DISTANCES) + f"{'likeness >=':>13}")
    for name, rows in copies.items():
        away = [min((look[0] ^ looks[n][0]).bit_count(), (look[0] ^ looks[n][1]).bit_count()) for n, look in rows]
        least = min(likeness(look[2], looks[n][2]) for n, look in rows)
        shares = "".join(f"{100 * np.mean(np.array(away) <= d):8.1f}%" for d in DISTANCES)
        print(f"{name:28}{len(rows):7}{shares}{least:13.4f}")


def _print_different(paths: list[Path], looks: list, *, group: str) -> None:
    """Pairs of different photos within a distance, and of those the ones that also look alike."""
    found = [re.search(group, path.name) if group else None for path in paths]
    names = [match.group(1) if match else str(path) for match, path in zip(found, paths, strict=True)]
    plain = np.array([look[0] for look in looks], dtype=np.uint64)
    mirrored = np.array([look[1] for look in looks], dtype=np.uint64)
    total, near = 0, []
    for k in range(1, len(plain)):
        other = np.array([name != names[k] for name in names[:k]])
        away = np.minimum(np.bitwise_count(plain[:k] ^ plain[k]), np.bitwise_count(mirrored[:k] ^ plain[k]))
        total += int(other.sum())
        near += [(int(away[i]), int(i), k) for i in np.flatnonzero(other & (away <= DISTANCES[-1]))]
    alike = [likeness(looks[i][2], looks[k][2]) for _, i, k in near]
    print(f"\n{total:,} pairs of different photos")
    for limit in DISTANCES:
        rows = [share for (away, _, _), share in zip(near, alike, strict=True) if away <= limit]
        print(
            f"D <= {limit:2}: {len(rows):5}"
            + "".join(f", {sum(s >= a for s in rows)} with likeness >= {a}" for a in ALIKE)
        )


if __name__ == "__main__":
    main(sys.argv[1:])
