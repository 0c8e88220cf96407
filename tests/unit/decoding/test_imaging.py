"""Every format, variant and contract option against the plain Pillow pipeline, on real bytes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gateway.decoding import imaging
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.errors import PayloadTooLarge, UndecodableImage, UnsupportedMediaType
from tests.support import images
from tests.support.pipeline import KERNELS, contract, reference

MEAN_DIFFERENCE_MAX = 1.5
SCENE_DIFFERENCE_MAX = 2.5
"""The scene's hard edges between strong colours show repeated chroma and coarser decodes more than a photo does."""
VARIANTS = images.variants()
SHAPES = (
    {"resize": "crop"},
    {"resize": "crop", "width": 40, "height": 24},
    {"resize": "crop", "width": 24, "height": 40, "crop_fraction": 1.0},
    {"resize": "stretch", "width": 31, "height": 45},
    {"resize": "letterbox", "padding": (10, 20, 30)},
    {"resize": "letterbox", "width": 21, "height": 50},
)


def decode(body, spec_contract):
    """Decode between two guard bands, which must stay as they were."""
    recipe = Recipe(spec_contract)
    size = int(np.prod(recipe.shape))
    memory = np.full(size + 128, 0xA5, np.uint8)
    out = memory[64 : 64 + size].reshape(recipe.shape)
    source = decode_into(memoryview(body), out, recipe, Scratch())
    assert (memory[:64] == 0xA5).all()
    assert (memory[-64:] == 0xA5).all()
    return out, source


def difference(left, right):
    return np.abs(left.astype(int) - right.astype(int))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("colour", ["rgb", "bgr", "gray"])
def test_exact_is_the_plain_pipeline_bit_by_bit(name, colour):
    for shape in SHAPES:
        spec = contract(colour=colour, exact=True, background=(200, 30, 90), **shape)
        out, source = decode(VARIANTS[name], spec)
        assert np.array_equal(out, reference(VARIANTS[name], spec.input)), shape
        assert source == (61, 47)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("colour", ["rgb", "bgr", "gray"])
def test_default_is_close_to_the_plain_pipeline(name, colour):
    for shape in SHAPES:
        spec = contract(colour=colour, background=(200, 30, 90), **shape)
        out, source = decode(VARIANTS[name], spec)
        # Subsampled colour aside, only what is decoded smaller differs by more than rounding.
        bound = SCENE_DIFFERENCE_MAX if name.startswith("jpeg") else MEAN_DIFFERENCE_MAX
        assert difference(out, reference(VARIANTS[name], spec.input)).mean() <= bound, shape
        assert source == (61, 47)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [{"resize": "crop"}, {"resize": "stretch", "width": 90, "height": 20}], ids=str)
def test_every_kernel(kernel, exact, shape):
    for name in ("png", "jpeg", "jpeg_gray"):
        spec = contract(resample=kernel, exact=exact, **shape)
        found = difference(decode(VARIANTS[name], spec)[0], reference(VARIANTS[name], spec.input))
        # Nearest copies pixels: one that is off is another pixel.
        assert found.max() <= (0 if exact or kernel == "nearest" else 1)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("orientation", images.ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation(kind, orientation, exact):
    # Subsampled colour has a test of its own.
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": "4:4:4"}}.get(kind, {})
    body = images.encode(images.scene(), kind, orientation=orientation, **options)
    for shape in SHAPES:
        spec = contract(exact=exact, **shape)
        out, source = decode(body, spec)
        found = difference(out, reference(body, spec.input))
        # A JPEG may be decoded at half its size; the others differ by rounding alone.
        close = kind == "JPEG" and not exact and found.mean() <= SCENE_DIFFERENCE_MAX
        assert (found.max() <= (0 if exact else 2)) or close, shape
        assert source == ((47, 61) if orientation >= 5 else (61, 47))


@pytest.mark.parametrize("resample", ["nearest", "bilinear"])
@pytest.mark.parametrize("orientation", images.ORIENTATIONS)
def test_orientation_of_an_image_that_has_the_slots_size(orientation, resample):
    body = images.encode(images.scene(32, 32), "JPEG", orientation=orientation)
    spec = contract(crop_fraction=1.0, resample=resample)
    assert np.array_equal(decode(body, spec)[0], reference(body, spec.input))


def test_orientation_is_left_alone_when_the_contract_says_so():
    body = images.encode(images.scene(), "JPEG", orientation=6)
    spec = contract(exif=False)
    out, source = decode(body, spec)
    assert source == (61, 47)
    assert difference(out, reference(body, spec.input)).max() <= 1


def test_orientation_from_xmp_where_exif_is_silent():
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    body = images.encode(images.scene(), "JPEG", xmp=packet)
    spec = contract()
    out, source = decode(body, spec)
    assert source == (47, 61)
    assert difference(out, reference(body, spec.input)).max() <= 2


def test_sixteen_bit_gray_keeps_its_upper_byte():
    image = images.deep_gray()
    body = images.encode(image, "PNG")
    spec = contract(width=61, height=47, crop_fraction=1.0, colour="gray")
    out, _ = decode(body, spec)
    assert np.array_equal(out[:, :, 0], np.asarray(image) >> 8)
    assert out.max() == 255
    assert out.min() == 0
    assert len(np.unique(out)) == 256


def test_sixteen_bit_gray_with_a_transparent_value():
    values = np.full((8, 8), 0x8000, np.uint16)
    values[:4] = 0x8001
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    clear = images.png_chunk(b"tRNS", b"\x80\x01")
    body = images.png(8, 8, bits=16, colour=0, rows=rows, before=clear)
    out, _ = decode(body, contract(width=8, height=8, crop_fraction=1.0, background=(1, 2, 3)))
    assert (out[:4] == (1, 2, 3)).all()
    assert (out[4:] == 0x80).all()


def test_sixteen_bit_rgb_keeps_its_upper_byte():
    body, expected = images.png_deep_rgb()
    out, _ = decode(body, contract(width=13, height=11, crop_fraction=1.0))
    assert np.array_equal(out, expected)


def test_alpha_shows_the_background_and_only_there():
    body = images.encode(images.translucent(), "PNG")
    out, _ = decode(body, contract(width=61, height=47, crop_fraction=1.0, background=(9, 8, 7)))
    assert (out[:, 0] == (9, 8, 7)).all()
    assert np.array_equal(out[:, -1], np.asarray(images.scene())[:, -1])


def test_letterbox_fills_bars_in_the_slots_colour_order():
    body = images.encode(images.scene(60, 20), "PNG")
    rgb, _ = decode(body, contract(resize="letterbox", padding=(1, 2, 3)))
    bgr, _ = decode(body, contract(resize="letterbox", padding=(1, 2, 3), colour="bgr"))
    gray, _ = decode(body, contract(resize="letterbox", padding=(255, 0, 0), colour="gray"))
    assert (rgb[0] == (1, 2, 3)).all()
    assert (bgr[-1] == (3, 2, 1)).all()
    assert (gray[0] == 76).all()
    assert not (rgb[16] == (1, 2, 3)).all()


def test_a_jpeg_of_the_slots_size_is_decoded_straight_into_it(monkeypatch):
    body = images.encode(images.scene(32, 32), "JPEG", quality=95)
    monkeypatch.setattr(imaging.pillow, "open_header", pytest.fail)
    monkeypatch.setattr(imaging.resizing.Canvases, "take", pytest.fail)
    for options in ({"resize": "stretch"}, {"crop_fraction": 1.0, "colour": "bgr"}, {"resize": "letterbox"}):
        spec = contract(**options)
        assert np.array_equal(decode(body, spec)[0], reference(body, spec.input))


@pytest.mark.slow
@pytest.mark.parametrize("name", images.PHOTOS)
@pytest.mark.parametrize("kernel", ["box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_photos_at_many_sizes_stay_close_to_the_plain_pipeline(name, kernel):
    spec = contract(width=224, height=224, resample=kernel)
    for shorter in (224, 300, 520, 640, 800, 1080, 1536, 2160):
        body = images.encode(images.photo(name, shorter), "JPEG", quality=90)
        found = difference(decode(body, spec)[0], reference(body, spec.input)).mean()
        assert found <= MEAN_DIFFERENCE_MAX, (shorter, found)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"orientation": 6}, {"progressive": True}, {"subsampling": "4:4:4"}], ids=str)
def test_a_photo_of_12_megapixels_stays_close_to_the_plain_pipeline(options):
    body = images.encode(images.photo("coffee", 2828), "JPEG", quality=85, **options)
    for shape in ({}, {"resize": "letterbox"}, {"resize": "stretch"}, {"colour": "gray"}):
        spec = contract(width=224, height=224, **shape)
        assert difference(decode(body, spec)[0], reference(body, spec.input)).mean() <= 1.0, shape


@pytest.mark.slow
@pytest.mark.parametrize("name", images.PHOTOS)
@pytest.mark.parametrize("quality", [75, 97])
def test_colour_that_is_repeated_is_not_seen_once_it_is_averaged(name, quality):
    spec = contract(width=224, height=224)
    for shorter in (359, 375, 520):
        body = images.encode(images.photo(name, shorter), "JPEG", quality=quality, subsampling="4:2:0")
        assert Recipe(spec).plan(images.photo(name, shorter).size, 1, jpeg=True).step.plain_chroma
        found = difference(decode(body, spec)[0], reference(body, spec.input))
        assert 0.1 < found.mean() <= 1.0, shorter


def test_a_cmyk_photo_is_drafted_and_stays_close():
    body = images.encode(images.photo("coffee").convert("CMYK"), "JPEG", quality=90)
    spec = contract(width=64, height=64)
    found = difference(decode(body, spec)[0], reference(body, spec.input))
    assert 0 < found.mean() <= MEAN_DIFFERENCE_MAX


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (7, 500)])
def test_odd_shapes(size):
    for kind in ("JPEG", "PNG"):
        body = images.encode(images.scene(*size), kind)
        for shape in SHAPES:
            spec = contract(**shape)
            found = difference(decode(body, spec)[0], reference(body, spec.input))
            assert (found.mean() <= MEAN_DIFFERENCE_MAX) if kind == "JPEG" else (found.max() <= 2), (kind, shape)


def test_a_jpeg_of_a_few_pixels_is_decoded_whole():
    for side in range(1, 18):
        body = images.encode(images.scene(side, side), "JPEG", quality=95, subsampling="4:4:4")
        for target in (side, max(1, side // 2)):
            spec = contract(width=target, height=target, crop_fraction=1.0)
            found = difference(decode(body, spec)[0], reference(body, spec.input))
            assert found.max() <= (0 if target == side else 1), side


def test_a_strip_is_refused_where_the_whole_would_be_resized_and_taken_elsewhere():
    body = images.encode(Image.new("L", (1, 16_000), 77), "PNG")
    with pytest.raises(PayloadTooLarge, match="long and narrow"):
        decode(body, contract(width=224, height=224, exact=True))
    out, _ = decode(body, contract(width=224, height=224))
    assert (out == 77).all()


@pytest.mark.parametrize(
    "body",
    [
        images.png_bomb(),
        images.jpeg_claiming(65_500, 65_500),
        b"GIF89a" + b"\xff" * 20,
        b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
        b"BM" + b"\0" * 12 + b"\x28\0\0\0" + b"\xff\xff\0\0\xff\xff\0\0",
    ],
    ids=["png", "jpeg", "gif", "webp", "bmp"],
)
def test_size_is_refused_before_any_codec_is_asked(body, monkeypatch):
    monkeypatch.setattr(imaging.pillow, "open_header", pytest.fail)
    monkeypatch.setattr(imaging.jpeg, "decode", pytest.fail)
    with pytest.raises(PayloadTooLarge, match="pixels"):
        decode(body, contract())


def test_tiff_size_is_refused_before_it_is_decoded(monkeypatch):
    body = images.encode(Image.new("1", (9000, 9000)), "TIFF", compression="group4")
    monkeypatch.setattr(imaging.pillow, "load", pytest.fail)
    with pytest.raises(PayloadTooLarge, match="9000 x 9000"):
        decode(body, contract())


def test_a_side_over_its_bound_is_refused():
    with pytest.raises(PayloadTooLarge, match="side"):
        decode(images.jpeg_claiming(40_000, 10), contract())


def test_the_pixel_bound_is_the_contracts_and_inclusive():
    body = images.encode(images.scene(20, 10), "PNG")
    decode(body, contract(pixels_max=200))
    with pytest.raises(PayloadTooLarge, match="20 x 10"):
        decode(body, contract(pixels_max=199))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"hello", "not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 40, "not a JPEG"),
        (images.jpeg_claiming(16, 16, frame=0xC3), "Lossless"),
        (images.jpeg_claiming(16, 16, frame=0xC5), "hierarchical"),
        (images.jpeg_claiming(16, 16, bits=12), "8 bits"),
        (images.encode(Image.new("F", (4, 4)), "TIFF"), "32-bit"),
        (images.encode(Image.new("I", (4, 4)), "TIFF"), "32-bit"),
        (images.encode(Image.new("LAB", (4, 4)), "TIFF"), "CIELAB"),
        (images.encode(images.scene(), "TIFF", compression="lzma"), "compressed"),
    ],
)
def test_what_is_not_read_here(body, words):
    with pytest.raises(UnsupportedMediaType, match=words):
        decode(body, contract())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff", "header"),
        (b"\xff\xd8\xff\xd9\0\0\0\0", "no picture"),
        (b"\xff\xd8\xff\xe0\0\x02" * 2000, "no picture|header"),
        (b"\xff\xd8" + b"\xff\xe0\0\x02" * 2000 + VARIANTS["jpeg"][2:], "no picture"),
        (b"\xff\xd8\xff\xfe\0\x02" + b"\0" * 70_000, "header"),
        (images.jpeg_claiming(0, 16), "no pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "header"),
        (b"\x89PNG\r\n\x1a\n", "header"),
        (b"RIFF\0\0\0\0WEBPJUNK", "picture"),
        (b"GIF89a", "header"),
        (b"BM", "header"),
        (b"II*\0", "damaged"),
    ],
)
def test_what_is_no_image(body, words):
    with pytest.raises(UndecodableImage, match=words):
        decode(body, contract())


def test_junk_and_fill_bytes_between_segments_are_skipped():
    body = VARIANTS["jpeg"]
    table = body.index(b"\xff\xdb")
    odd = body[:table] + b"\xff\xff\xff" + body[table:]
    spec = contract()
    assert np.array_equal(decode(odd, spec)[0], decode(body, spec)[0])
    junk = body[:table] + b"\0" * 9 + body[table:]
    assert difference(decode(junk, spec)[0], reference(junk, spec.input)).max() <= 1


def test_too_many_scans_are_refused_before_they_are_decoded(monkeypatch):
    body = images.scan_bomb(64, 150)
    monkeypatch.setattr(imaging.jpeg, "decode", pytest.fail)
    with pytest.raises(UndecodableImage, match="scans"):
        decode(body, contract())


def test_a_damaged_exif_block_is_no_reason_to_refuse():
    for content in (b"", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40, b"no tiff at all"):
        body = images.encode(images.scene(), "JPEG", exif=b"Exif\0\0" + content)
        assert decode(body, contract())[1] == (61, 47)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jpeg", "jpeg_progressive", "jpeg_gray", "png", "webp", "gif", "bmp", "tiff_lzw"])
def test_an_image_that_is_cut_short_at_any_byte_is_refused_or_whole(name):
    body = VARIANTS[name]
    spec = contract()
    whole = decode(body, spec)[0]
    refused = 0
    for end in range(0, len(body), 1 if len(body) < 2000 else 7):
        try:
            out, _ = decode(body[:end], spec)
        except (UndecodableImage, UnsupportedMediaType):
            refused += 1
        else:
            # Only trailing bytes that carry no pixels may be missing.
            assert end > len(body) * 0.9, end
            assert difference(out, whole).mean() < 8
    assert refused > 0


def test_no_refusal_quotes_a_library():
    for body in (VARIANTS["png"][:200], VARIANTS["jpeg"][:900], VARIANTS["webp"][:300], VARIANTS["tiff"][:50]):
        with pytest.raises(UndecodableImage) as caught:
            decode(body, contract())
        assert caught.value.detail.endswith("damaged or cut short.")
        assert caught.value.__cause__ is None


def test_a_recipe_forgets_old_sizes(monkeypatch):
    monkeypatch.setattr(imaging, "PLANS_MAX", 3)
    recipe = Recipe(contract())
    for width in range(1, 20):
        recipe.plan((width, 5), 1, jpeg=True)
        assert len(recipe._plans) <= 3
