"""Tar archives read in place: right bytes at the address, everything else refused with its reason."""

from __future__ import annotations

import io
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sum.data.archives import list_members, list_photos
from sum.data.frames import load_photo
from sum.data.layouts import LAYOUTS
from sum.data.sources import Problem, Sample, Source
from sum.errors import DataError
from sum.storage import member_name, read_bytes, size_of


def pack(path: Path, files: dict[str, bytes], *, kind: int = tarfile.PAX_FORMAT) -> Path:
    """A plain tar with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:", format=kind) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def photo(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def refusals(path: Path) -> dict[str, str]:
    return dict(list_members(str(path)).refused)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_reads_as_it_was_packed(tmp_path: Path, kind: int) -> None:
    files = {"./a.jpg": os.urandom(700), "deep/er/1#A#x.jpg": os.urandom(512), "empty.txt": b"", "z+1#2+3.jpg": b"z"}
    if kind != tarfile.USTAR_FORMAT:
        files |= {"ä/" + "long" * 60 + ".jpg": os.urandom(3000)}
    path = pack(tmp_path / "x.tar", files | {"._a.jpg": b"dot"}, kind=kind)
    listing = list_members(str(path))
    assert not listing.refused
    assert {m.name: read_bytes(m.uri) for m in listing.members} == {n.removeprefix("./"): d for n, d in files.items()}
    assert [size_of(member.uri) for member in listing.members] == [len(data) for data in files.values()]
    assert [member_name(member.uri) for member in listing.members] == [
        f"{tmp_path}/x/{m.name}" for m in listing.members
    ]


def hostile(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("info", "name", "want"),
    [
        (hostile("../up.jpg"), "../up.jpg", r"'\.\.'"),
        (hostile("a/../../up.jpg"), "a/../../up.jpg", r"'\.\.'"),
        (hostile("a\\..\\up.jpg"), "a\\..\\up.jpg", r"'\.\.'"),
        (hostile("/etc/passwd.jpg"), "/etc/passwd.jpg", "absolute"),
        (hostile("C:/up.jpg"), "C:/up.jpg", "absolute"),
        (hostile("s.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), "s.jpg", "symbolic link"),
        (hostile("h.jpg", tarfile.LNKTYPE, linkname="good.jpg"), "h.jpg", "hard link"),
        (hostile("d.jpg", tarfile.CHRTYPE), "d.jpg", "device"),
        (hostile("b.jpg", tarfile.BLKTYPE), "b.jpg", "device"),
        (hostile("p.jpg", tarfile.FIFOTYPE), "p.jpg", "pipe"),
        (hostile("v.jpg", b"V"), "v.jpg", "not a regular file"),
        (hostile("bad\udcff.jpg"), "bad\\udcff.jpg", "UTF-8"),
        (hostile("new\nline.jpg"), "'new\\nline.jpg'", "control"),
        (hostile("good.jpg"), "good.jpg", "twice"),
        (hostile("sp.jpg", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1",
                                        "GNU.sparse.size": "9"}), "sp.jpg", "sparse"),
    ],
)  # fmt: skip
def test_what_is_no_regular_file_inside_is_refused(tmp_path: Path, info: tarfile.TarInfo, name: str, want: str) -> None:
    good, last = b"good" * 200, b"last"
    path = pack(tmp_path / "x.tar", {"good.jpg": good})
    with tarfile.open(path, "a:", encoding="utf-8", errors="surrogateescape") as archive:
        archive.addfile(info)
        info = tarfile.TarInfo("last.jpg")
        info.size = len(last)
        archive.addfile(info, io.BytesIO(last))
    listing = list_members(str(path))
    assert [(m.name, read_bytes(m.uri)) for m in listing.members] == [("good.jpg", good), ("last.jpg", last)]
    [(found, reason)] = listing.refused
    assert found == name
    assert re.search(want, reason)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_archives_are_refused(tmp_path: Path, mode: str) -> None:
    for name in ("x.tar", f"y.tar.{mode}"):
        with tarfile.open(tmp_path / name, f"w:{mode}") as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("a.jpg"))
    names, refused = list_photos(str(tmp_path))
    assert names == []
    assert [Path(path).name for path, _ in refused] == ["x.tar", f"y.tar.{mode}"]
    assert all("compressed" in reason and "repack it as a plain tar" in reason for _, reason in refused)


def test_a_cut_archive_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    whole = pack(tmp_path / "x.tar", {"a.jpg": b"a" * 1000, "b.jpg": b"b" * 1000, "c.jpg": b"c" * 1000}).read_bytes()
    cut = tmp_path / "cut.tar"
    for length, names in [  # header 512, data 1024 a member
        (0, []), (100, []), (511, []), (1000, []), (1535, ["a.jpg"]), (1536, ["a.jpg"]), (1700, ["a.jpg"]),
        (2500, ["a.jpg"]), (3 * 1536, ["a.jpg", "b.jpg", "c.jpg"]),
    ]:  # fmt: skip
        cut.write_bytes(whole[:length])
        listing = list_members(str(cut))
        assert [member.name for member in listing.members] == names, length
        assert [name for name, _ in listing.refused] == [""], length
    cut.write_bytes(whole[:1536] + os.urandom(512) + whole[2048:])  # a damaged header is no end
    assert refusals(cut).keys() == {""}
    cut.write_bytes(whole[: 3 * 1536 + 512])  # one block of the end mark is enough
    assert not refusals(cut)


def number(info: tarfile.TarInfo, size: int) -> bytes:
    """A header whose size field is a base-256 number."""
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [-512, -1024, -1, 2**60])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.DIRTYPE, b"V"])
def test_sizes_that_lead_back_or_far_away_end_the_reading(tmp_path: Path, size: int, kind: bytes) -> None:
    good = pack(tmp_path / "x.tar", {"good.jpg": b"good"}).read_bytes()[:1024]
    (tmp_path / "x.tar").write_bytes(good + number(hostile("bad.jpg", kind), size) + bytes(1024))
    listing = list_members(str(tmp_path / "x.tar"))
    assert [member.name for member in listing.members] == ["good.jpg"]
    assert ("" in dict(listing.refused)) != (kind == tarfile.DIRTYPE and size > 0)  # a folder has no content to skip


def test_a_chain_of_long_names_ends(tmp_path: Path) -> None:
    block = number(hostile("x", tarfile.GNUTYPE_LONGNAME), 3) + b"abc".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(block * 5000)
    assert "" in refusals(tmp_path / "x.tar")


def test_photos_of_archives_are_photos_of_the_folder(tmp_path: Path) -> None:
    photos = {f"in/{n}.png": photo(n) for n in range(3)}
    pack(tmp_path / "images" / "shards" / "s1.tar", photos | {"in/0.json": b"{}"})
    (tmp_path / "images" / "s1.png").write_bytes(photo(9))
    pack(tmp_path / "images" / "s2.tar", {"7.png": photo(7)})
    source = Source(name="set", root=str(tmp_path), split="unlabelled", task="unspecified", licence="MIT")
    items = [item for job in LAYOUTS["images"](source) for item in job.read()]
    images = {item.image.image_id: item.image for item in items if isinstance(item, Sample)}
    assert set(images) == {"set/s1", "set/s2/7", "set/shards/s1/in/0", "set/shards/s1/in/1", "set/shards/s1/in/2"}
    for n in range(3):
        truth = np.asarray(Image.open(io.BytesIO(photos[f"in/{n}.png"])))
        assert (load_photo(images[f"set/shards/s1/in/{n}"]) == truth).all()
    wrong = replace(images["set/shards/s1/in/0"], sha256="0" * 64)
    with pytest.raises(DataError, match=r"the file has changed\. Run `dvc repro --force ingest`"):
        load_photo(wrong)
    (tmp_path / "images" / "s2").mkdir()
    (tmp_path / "images" / "s2" / "7.jpg").write_bytes(photo(8))  # the archive, unpacked beside it
    items = [item for job in LAYOUTS["images"](source) for item in job.read()]
    assert next(item.reason for item in items if isinstance(item, Problem)).startswith("has the same name as")


def test_an_archive_that_shrank_since_ingest(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a.jpg": b"a" * 4000})
    [member] = list_members(str(path)).members
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="has changed"):
        read_bytes(member.uri)
