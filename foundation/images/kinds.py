"""Kinds of files by their first bytes, and what helps with a file that is not an image of a format that is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 1024
"""bytes from which the kind of a file is found"""
_CONVERT = "convert it to PNG or JPEG"
_RAW = "develop it to PNG, TIFF or JPEG"
_FRAMES = "save the frames as PNG or JPEG"
_TO_PARQUET = "write them to a parquet file with an image column"
_ARRAYS = "--data.preprocess.mode channels or bits 16 reads a folder of .npy files with one image each"
_PAGES = "save the pages as PNG or JPEG"


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        name: as people call it, e.g. ``HEIC``.
        fix: what to do with it; "" for an image of a format that is read.
    """

    name: str
    fix: str = ""

    @property
    def is_read(self) -> bool:
        """Whether it is an image of a format that is read."""
        return not self.fix


_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", Kind("PNG")),
    (0, b"\xff\xd8\xff", Kind("JPEG")),
    (0, b"GIF87a", Kind("GIF")),
    (0, b"GIF89a", Kind("GIF")),
    (8, b"WEBP", Kind("WebP")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", Kind("JPEG 2000")),
    (0, b"\xff\x4f\xff\x51", Kind("JPEG 2000")),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", Kind("JPEG XL", _CONVERT)),
    (0, b"\xff\x0a", Kind("JPEG XL", _CONVERT)),
    (8, b"CR\x02", Kind("a raw photo (CR2)", _RAW)),
    (0, b"FUJIFILMCCD-RAW", Kind("a raw photo (RAF)", _RAW)),
    (0, b"IIU\0", Kind("a raw photo (RW2)", _RAW)),
    (0, b"IIRO", Kind("a raw photo (ORF)", _RAW)),
    (0, b"IIRS", Kind("a raw photo (ORF)", _RAW)),
    (0, b"FOVb", Kind("a raw photo (X3F)", _RAW)),
    (0, b"II*\0", Kind("TIFF")),
    (0, b"MM\0*", Kind("TIFF")),
    (0, b"II+\0", Kind("BigTIFF")),
    (0, b"MM\0+", Kind("BigTIFF")),
    (0, b"\0\0\x01\0", Kind("ICO")),
    (0, b"8BPS", Kind("a Photoshop document", _CONVERT)),
    (0, b"\x76\x2f\x31\x01", Kind("OpenEXR", _CONVERT)),
    (0, b"#?RADIANCE", Kind("Radiance HDR", _CONVERT)),
    (0, b"%PDF", Kind("PDF", _PAGES)),
    (0, b"%!PS", Kind("PostScript", _PAGES)),
    (0, b"\x1a\x45\xdf\xa3", Kind("a video (Matroska, WebM)", _FRAMES)),
    (8, b"AVI ", Kind("a video (AVI)", _FRAMES)),
    (128, b"DICM", Kind("DICOM", "convert it to a 16-bit PNG")),
    (0, b"SIMPLE  =", Kind("FITS", "convert it to a 16-bit PNG")),
    (0, b"\x89HDF\r\n\x1a\n", Kind("HDF5", "write its images to a parquet file, and use type dataset")),
    (0, b"\x93NUMPY", Kind("a NumPy array", _ARRAYS)),
    (0, b"PAR1", Kind("a parquet file", "use type dataset")),
    (0, b"ARROW1", Kind("an Arrow file", "use type dataset")),
    (0, b"PK\x03\x04", Kind("a zip archive", "unpack it")),
    (0, b"\x1f\x8b", Kind("a gzip file", "decompress it")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", "unpack it")),
    (257, b"ustar", Kind("a tar archive", "use type archives")),
    (0, b"\0\x05\x16\x07", Kind("macOS metadata (AppleDouble)", "leave it: the image is the file without ._")),
    (0, b"version https://git-lfs", Kind("a pointer of Git LFS, not the file", "fetch the files: git lfs pull")),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), Kind("AVIF")),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), Kind("HEIC", _CONVERT)),
    b"crx ": Kind("a raw photo (CR3)", _RAW),
}
_TEXTS = (
    (b"<svg", Kind("SVG", _CONVERT)),
    (b"<!doctype html", Kind("an HTML page", "fetch the image again: the server answered with a page")),
    (b"<html", Kind("an HTML page", "fetch the image again: the server answered with a page")),
)


def kind_of(data: bytes) -> Kind | None:
    """The kind of a file.

    Args:
        data: the file, or its first ``HEAD_BYTES``.

    Returns:
        None if the first bytes belong to no known kind, or the format has no mark of its own (TGA).
    """
    if data[4:8] == b"ftyp":
        other = Kind("a video (MP4, MOV)", _FRAMES)
        brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), 64), 4))]
        return next((_BRANDS[each] for each in brands if each in _BRANDS), other)
    for start, magic, kind in _MAGIC:
        if data.startswith(magic, start):
            return kind
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return Kind("a portable pixmap (PBM, PGM, PPM)")
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return Kind("BMP")
    text = data[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((kind for start, kind in _TEXTS if text.startswith(start) or _in_xml(start, text)), None)


def _in_xml(start: bytes, text: bytes) -> bool:
    return text.startswith((b"<?xml", b"<!doctype svg")) and start in text


_TABLES = "--data.source.type dataset reads it"
NOT_FOLDERS: dict[str, tuple[str, str]] = {
    **dict.fromkeys((".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson"), ("a table", _TABLES)),
    ".tar": ("a tar archive", "--data.source.type archives reads it"),
    **dict.fromkeys((".zip", ".7z", ".rar"), ("a packed archive", "unpack it, and give the folder")),
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".zst"), ("a compressed file", "decompress it")),
    ".npy": ("NumPy arrays", f"{_ARRAYS}; or {_TO_PARQUET}"),
    ".npz": ("NumPy arrays", _TO_PARQUET),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), ("an HDF5 file", "write its images to a parquet file or a folder")),
    ".tfrecord": ("a TFRecord file", "write its images to a parquet file or a folder"),
    **dict.fromkeys((".pt", ".pth", ".pkl", ".pickle"), ("a pickle", "write its images to a parquet file or a folder")),
    ".lmdb": ("an LMDB database", "write its images to a parquet file or a folder"),
    ".mdb": ("an LMDB database", "write its images to a parquet file or a folder"),
    **dict.fromkeys((".rec", ".bin", ".db", ".sqlite"), ("binary records", "write its images to a parquet file")),
}

"""ending => what a file is that holds many images or none, and what to do with it"""
FOREIGN_SUFFIXES = {
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".exr", ".hdr", ".pdf", ".eps", ".dcm", ".nii", ".fits"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".mp4", ".mov", ".avi", ".webm", ".mkv"),
}
"""endings of pictures and videos of formats that are not read"""


def way_to_open(path: Path) -> tuple[str, str]:
    """What a file is that was given as the place of images, and how to use it, by its ending.

    Returns:
        for example ("a tar archive", "--data.source.type archives reads it").
    """
    return NOT_FOLDERS.get(path.suffix.lower(), ("a file", "give the folder that holds the images"))
