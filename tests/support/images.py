"""Builders of encoded images: every format and variant that is read here, and hostile ones; nothing is stored."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import skimage
from PIL import ExifTags, Image, PngImagePlugin

_SKIMAGE = Path(skimage.__file__).parent / "data"
PHOTOS = {
    "chelsea": _SKIMAGE / "chelsea.png",
    "coffee": _SKIMAGE / "coffee.png",
    "rocket": _SKIMAGE / "rocket.jpg",
    "astronaut": _SKIMAGE / "astronaut.png",
    "hopper": Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg",
}
ORIENTATIONS = tuple(range(1, 9))


@cache
def photo(name: str, shorter: int | None = None) -> Image.Image:
    """A real photo as RGB, scaled so that its shorter side has `shorter` pixels."""
    image = Image.open(PHOTOS[name]).convert("RGB")
    if shorter is None:
        return image
    factor = shorter / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def encode(image: Image.Image, kind: str, *, orientation: int | None = None, **options: object) -> bytes:
    """One image as bytes of Pillow's format `kind`, with an EXIF orientation when one is given."""
    if orientation is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(width: int = 61, height: int = 47) -> Image.Image:
    """A small RGB picture with gradients, edges and no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    red = x * 255 // max(1, width - 1)
    green = y * 255 // max(1, height - 1)
    blue = np.where((x // 7 + y // 5) % 2 == 0, 200, 40)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def translucent(width: int = 61, height: int = 47) -> Image.Image:
    """The scene with alpha from 0 to 255 across it."""
    image = scene(width, height).convert("RGBA")
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    image.putalpha(Image.fromarray(ramp))
    return image


def deep_gray(width: int = 61, height: int = 47) -> Image.Image:
    """16-bit gray with both bytes in use."""
    values = np.arange(width * height, dtype=np.uint32) * 65535 // (width * height - 1)
    return Image.fromarray(values.astype(np.uint16).reshape(height, width))


def png_chunk(name: bytes, content: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *, bits: int, colour: int, rows: bytes, before: bytes = b"") -> bytes:
    """A PNG of raw filtered `rows`, for kinds that Pillow does not write; `before`: chunks between header and data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(rows, 9)
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_deep_rgb(width: int = 13, height: int = 11) -> tuple[bytes, np.ndarray]:
    """A 16-bit RGB PNG, and its upper bytes as uint8[h, w, 3]."""
    values = np.random.default_rng(7).integers(0, 65536, (height, width, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, bits=16, colour=2, rows=rows), (values >> 8).astype(np.uint8)


def variants() -> dict[str, bytes]:
    """Every format and variant that is read here, by name; small."""
    image, alpha = scene(), translucent()
    palette = image.quantize(32)
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "x" * 1000, zip=True)
    return {
        "jpeg": encode(image, "JPEG", quality=90),
        "jpeg_444": encode(image, "JPEG", quality=95, subsampling="4:4:4"),
        "jpeg_422": encode(image, "JPEG", quality=95, subsampling="4:2:2"),
        "jpeg_progressive": encode(image, "JPEG", quality=90, progressive=True),
        "jpeg_gray": encode(image.convert("L"), "JPEG", quality=90),
        "jpeg_restarts": encode(image, "JPEG", restart_marker_blocks=2),
        "jpeg_rgb": encode(image, "JPEG", quality=95, keep_rgb=True),
        "jpeg_cmyk": encode(image.convert("CMYK"), "JPEG", quality=95),
        "jpeg_ycck": ycck(image),
        "jpeg_icc": encode(image, "JPEG", icc_profile=b"\0" * 100_000),
        "jpeg_mpo": encode(image, "MPO", save_all=True, append_images=[image.convert("L").convert("RGB")]),
        "png": encode(image, "PNG"),
        "png_gray": encode(image.convert("L"), "PNG"),
        "png_1bit": encode(image.convert("1"), "PNG"),
        "png_palette": encode(palette, "PNG"),
        "png_palette_clear": encode(palette, "PNG", transparency=3),
        "png_palette_alpha": encode(palette, "PNG", transparency=bytes(range(0, 256, 8))),
        "png_rgb_clear": encode(image, "PNG", transparency=image.getpixel((5, 5))),
        "png_gray_clear": encode(image.convert("L"), "PNG", transparency=image.convert("L").getpixel((5, 5))),
        "png_rgba": encode(alpha, "PNG"),
        "png_la": encode(alpha.convert("LA"), "PNG"),
        "png_16bit_rgb": png_deep_rgb(61, 47)[0],
        "png_text": encode(image, "PNG", pnginfo=comment),
        "apng": encode(image, "PNG", save_all=True, append_images=[alpha.convert("RGB").rotate(90, expand=False)]),
        "webp": encode(image, "WEBP", quality=90),
        "webp_lossless": encode(image, "WEBP", lossless=True),
        "webp_alpha": encode(alpha, "WEBP", quality=90),
        "webp_animated": encode(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
        "gif": encode(image, "GIF"),
        "gif_clear": encode(palette, "GIF", transparency=3),
        "gif_animated": encode(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        "tiff": encode(image, "TIFF"),
        "tiff_lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff_deflate": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff_packbits": encode(image, "TIFF", compression="packbits"),
        "tiff_jpeg": encode(image, "TIFF", compression="jpeg"),
        "tiff_group4": encode(image.convert("1"), "TIFF", compression="group4"),
        "tiff_rgba": encode(alpha, "TIFF"),
        "tiff_cmyk": encode(image.convert("CMYK"), "TIFF"),
        "tiff_palette": encode(palette, "TIFF"),
        "tiff_pages": encode(image, "TIFF", save_all=True, append_images=[image.rotate(180)]),
        "bmp": encode(image, "BMP"),
        "bmp_gray": encode(image.convert("L"), "BMP"),
        "bmp_1bit": encode(image.convert("1"), "BMP"),
        "bmp_palette": encode(palette, "BMP"),
    }


def ycck(image: Image.Image) -> bytes:
    """A JPEG that Adobe calls YCCK: a CMYK file whose first three planes are YCbCr of the inverted inks."""
    cmyk = np.asarray(image.convert("CMYK"))
    turned = np.asarray(Image.fromarray(255 - cmyk[:, :, :3]).convert("YCbCr"))
    planes = np.dstack([255 - turned, cmyk[:, :, 3]]).astype(np.uint8)
    body = encode(Image.fromarray(planes, "CMYK"), "JPEG", quality=95, subsampling="4:4:4")
    start = body.index(b"\xff\xeeAdobe"[:2])
    assert body[start + 4 : start + 9] == b"Adobe"
    # The last byte of Adobe's segment names the transform: 0 is CMYK, 2 is YCCK.
    return body[: start + 15] + b"\x02" + body[start + 16 :]


def jpeg_claiming(width: int, height: int, *, frame: int = 0xC0, bits: int = 8) -> bytes:
    """A small JPEG whose frame header says something else."""
    body = bytearray(encode(scene(16, 16), "JPEG"))
    start = body.index(b"\xff\xc0")
    body[start + 1] = frame
    struct.pack_into(">BHH", body, start + 4, bits, height, width)
    return bytes(body)


def png_bomb(side: int = 13_000) -> bytes:
    """A 1-bit PNG of `side` squared pixels in about 20 kB."""
    packer = zlib.compressobj(9)
    data = packer.compress(b"\0" * ((side + 7) // 8 + 1) * side) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def scan_bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has about `scans`: few bytes, much work."""
    body = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    starts = [at for at in range(len(body) - 1) if body[at : at + 2] == b"\xff\xda"]
    # Successive approximation may not go back, but a first pass over coefficients may be repeated: take an AC one.
    tables = body.rindex(b"\xff\xc4", 0, starts[1])
    scan = body[tables : _next_segment(body, starts[1])]
    end = body.rindex(b"\xff\xd9")
    return body[:tables] + scan * scans + body[end:]


def _next_segment(body: bytes, start: int) -> int:
    """Where the entropy-coded bytes behind a start of scan end."""
    at = start + 2
    while not (body[at] == 0xFF and body[at + 1] not in (0, *range(0xD0, 0xD8))):
        at += 1
    return at
