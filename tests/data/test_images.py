"""Images: one meaning of brightness for every format, and no bytes at all that raise anything but ImageError."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from cflow_ray.config import DetectorConfig, InputConfig, MapFormat, TilingConfig
from cflow_ray.data.images import (
    MAX_PIXELS,
    ImageFacts,
    as_window,
    centre_frame,
    centre_window,
    decode,
    decode_map,
    decode_mask,
    encode_map,
    encode_png,
    examine,
    has_defect,
    is_image_name,
    prepare,
)
from cflow_ray.errors import ImageError
from cflow_ray.model.verdict import find_regions

Encode = Callable[..., bytes]
Pixels = NDArray[np.uint8]


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file written by hand (PNG specification, section 5), for what Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def square(side: int) -> InputConfig:
    """An input of this side, everything else as it is by default."""
    return DetectorConfig(input_size=side).input


def pixels(content: bytes) -> Pixels:
    return np.asarray(decode(content))


# -- what cannot be decoded


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
def test_half_a_file_is_an_image_error(encode: Encode, photo: Pixels, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert prepare(encode(noise, kind), square(32)).width == 64
    with pytest.raises(ImageError):
        prepare(truncated(encode(noise, kind)), square(32))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"no picture, whatever its name says", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(100)]
)
def test_what_is_no_image_is_an_image_error(content: bytes) -> None:
    for decode_it in (
        decode,
        lambda content: prepare(content, square(32)),
        lambda content: decode_mask(content, (8, 8)),
    ):
        with pytest.raises(ImageError):
            decode_it(content)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(ImageError, match="empty file"):
        decode(b"")


def test_text_is_told_which_formats_are_known() -> None:
    with pytest.raises(ImageError, match=r"PNG, JPEG"):
        decode(b"hello")


def test_a_checksum_that_does_not_fit_is_an_image_error(encode: Encode, photo: Pixels) -> None:
    content = bytearray(encode(photo))
    content[content.index(b"IDAT") + 6] ^= 1
    with pytest.raises(ImageError, match="damaged image"):
        decode(bytes(content))


def test_formats_outside_the_list_are_refused(encode: Encode, photo: Pixels) -> None:
    for kind in ("ICO", "TGA", "PDF"):
        with pytest.raises(ImageError):
            decode(encode(photo, kind))


@pytest.mark.parametrize(
    ("width", "height"), [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (MAX_PIXELS // 1000 + 1, 1001)]
)
def test_a_huge_declared_size_is_refused_without_decoding(width: int, height: int) -> None:
    bomb = png(width, height, 8, 0, bytes(1000))
    tracemalloc.start()
    try:
        for decode_it in (decode, lambda content: decode_mask(content, (8, 8))):
            with pytest.raises(ImageError, match="pixels"):
                decode_it(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_limit_itself_is_allowed(encode: Encode) -> None:
    assert decode(encode(np.zeros((4, 6), np.uint8)), max_pixels=24).size == (6, 4)
    with pytest.raises(ImageError, match=r"5 x 5 pixels; at most 24 are decoded"):
        decode(encode(np.zeros((5, 5), np.uint8)), max_pixels=24)


@pytest.mark.parametrize("side", [9_500, 14_000])
def test_a_size_that_pillow_refuses_too_is_too_large(side: int) -> None:
    """Pillow warns above 89 million pixels, and above 179 million it raises before the size can be looked at."""
    for decode_it in (decode, examine, has_defect, lambda content: decode_mask(content, (8, 8))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match=f"at most {MAX_PIXELS} are|more than {MAX_PIXELS}") as caught:
                decode_it(png(side, side, 8, 0, bytes(1000)))
        assert caught.value.kind == "too_large"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_limit_above_pillows_own_is_the_limit(
    encode: Encode, photo: Pixels, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses the 960 pixels of a photo
    content = encode(photo, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(content, square(32), max_pixels=960).width == 40
        with pytest.raises(ImageError, match="at most 959 are decoded"):
            decode(content, max_pixels=959)


def test_pillows_limit_is_left_alone_where_the_limit_is_not_above(encode: Encode, photo: Pixels) -> None:
    before = Image.MAX_IMAGE_PIXELS
    decode(encode(photo))
    assert before == Image.MAX_IMAGE_PIXELS == MAX_PIXELS


def test_an_image_within_a_larger_limit_is_not_too_large_to_be_tiled(
    encode: Encode, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cflow_ray.data.images.MAX_PIXELS", 959)
    config = DetectorConfig(input_size=32, tiling=TilingConfig()).input
    assert prepare(encode(photo), config, max_pixels=40 * 32).pixels_3HW.shape == (3, 32, 40)


def test_text_that_unpacks_to_gigabytes_is_an_image_error(encode: Encode, photo: Pixels) -> None:
    whole = encode(photo)
    text = b"key\0\0" + zlib.compress(bytes(80 * 2**20))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    with pytest.raises(ImageError):
        decode(whole[:33] + chunk + whole[33:])


MUTATIONS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8)


def a_picture(kind: str) -> bytes:
    y, x = np.mgrid[0:24, 0:40]
    image = Image.fromarray(np.stack([6 * x, 10 * y, x ^ y], axis=2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


ORIGINALS = {kind: a_picture(kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP")} | {
    kind: png(2, 2, 16, 0, bytes(10)) for kind in ("PNG 16 bit",)
}


T = TypeVar("T")


def check_decodes_or_image_error(decode_it: Callable[[bytes], T], content: bytes) -> T | None:
    """The image, or None where it is refused with a message of one line; anything else is raised."""
    try:
        return decode_it(content)
    except ImageError as error:
        if "\n" in str(error) or not str(error):
            raise
    return None


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that it then decodes
@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(ORIGINALS)), mutations=MUTATIONS, end=st.integers(0, 10**6), cut=st.booleans())
@example(kind="PNG", mutations=[(18, 255), (19, 255)], end=0, cut=False)
def test_any_bytes_decode_or_are_an_image_error(
    kind: str, mutations: list[tuple[int, int]], end: int, cut: bool
) -> None:
    content = bytearray(ORIGINALS[kind])
    for at, value in mutations:
        content[at % len(content)] = value
    damaged = bytes(content[: end % len(content)] if cut else content)
    prepared = check_decodes_or_image_error(lambda content: prepare(content, square(32)), damaged)
    if prepared is not None:
        assert prepared.pixels_3HW.shape == (3, 32, 32)
        assert prepared.width * prepared.height <= MAX_PIXELS


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None)
@given(
    content=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"BM", b"II*\0", b"P5 "]),
    more=st.binary(),
)
def test_any_bytes_after_a_signature_decode_or_are_an_image_error(content: bytes, more: bytes) -> None:
    check_decodes_or_image_error(decode, content + more)
    check_decodes_or_image_error(lambda content: decode_mask(content, (4, 4)), content + more)


# -- what every mode means


def test_8_bit_rgb_comes_back_as_it_is(encode: Encode, photo: Pixels) -> None:
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(pixels(encode(photo, kind)), photo)
    assert np.array_equal(pixels(encode(photo, "WEBP", lossless=True)), photo)


def test_jpeg_is_near_the_original(encode: Encode, photo: Pixels) -> None:
    assert np.abs(pixels(encode(photo, "JPEG", quality=95)).astype(int) - photo).mean() < 3


def test_grey_gives_three_equal_channels(encode: Encode) -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    assert np.array_equal(pixels(encode(grey)), np.stack([grey] * 3, axis=2))


def test_one_pixel_fills_the_whole_input(encode: Encode) -> None:
    prepared = prepare(encode(np.array([[[10, 20, 30]]], np.uint8)), square(32))
    assert (prepared.width, prepared.height) == (1, 1)
    assert prepared.pixels_3HW.shape == (3, 32, 32)
    assert (prepared.pixels_3HW == np.array([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize("values", [[0, 1, 255], [256, 511, 512], [1000, 1001, 1002], [0, 32768, 65535]])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_by_a_constant_and_never_by_its_range(
    encode: Encode, kind: str, values: list[int]
) -> None:
    grey = np.array([values], np.uint16)
    assert pixels(encode(grey, kind))[0, :, 0].tolist() == [value >> 8 for value in values]


def test_16_bit_grey_big_endian_means_the_same(encode: Encode) -> None:
    values = [0, 255, 256, 40000, 65535]
    image = Image.frombytes("I;16B", (5, 1), np.array(values, ">u2").tobytes())
    assert pixels(encode(image, "TIFF"))[0, :, 1].tolist() == [value >> 8 for value in values]


def test_16_bit_rgb_is_scaled_by_the_same_constant() -> None:
    values = np.array([[0, 255, 256], [40000, 65535, 32768]], ">u2")
    content = png(2, 1, 16, 2, b"\0" + values.tobytes())
    assert pixels(content).tolist() == [(values.astype(int) >> 8).tolist()]


def test_32_bit_grey_is_taken_as_16_bit_and_clipped(encode: Encode) -> None:
    image = Image.fromarray(np.array([[-5, 0, 256, 65535, 2**31 - 1]], np.int32))
    assert pixels(encode(image, "TIFF"))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_float_is_taken_as_0_to_1_whatever_its_range(encode: Encode) -> None:
    values = np.array([[0, 0.25, 0.5, 1, -3, 7, np.nan, np.inf]], np.float32)
    assert pixels(encode(values, "TIFF"))[0, :, 2].tolist() == [0, 64, 128, 255, 0, 255, 0, 0]


def test_one_bit_is_black_and_white(encode: Encode) -> None:
    bits = np.array([[True, False, True]])
    assert pixels(encode(Image.fromarray(bits)))[0, :, 0].tolist() == [255, 0, 255]


def palette_image(transparent: bool) -> tuple[Image.Image, dict[str, Any]]:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 10, 20, 5, 250, 6, 7, 8, 90])
    image.putdata([0, 1, 2])
    return image, {"transparency": bytes([0, 128, 255])} if transparent else {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_gives_its_colours_and_transparency_is_dropped(encode: Encode, kind: str, transparent: bool) -> None:
    image, options = palette_image(transparent)
    if kind == "GIF" and transparent:
        options = {"transparency": 0}
    assert pixels(encode(image, kind, **options)).tolist() == [[[200, 10, 20], [5, 250, 6], [7, 8, 90]]]


def test_alpha_is_dropped_not_blended(encode: Encode) -> None:
    la = Image.fromarray(np.array([[[100, 0], [50, 128]]], np.uint8), "LA")
    assert pixels(encode(la)).tolist() == [[[100] * 3, [50] * 3]]
    rgba = np.array([[[1, 2, 3, 0], [4, 5, 6, 128]]], np.uint8)
    assert pixels(encode(rgba)).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    grey = Image.fromarray(np.array([[9, 8]], np.uint8))
    assert pixels(encode(grey, transparency=9)).tolist() == [[[9] * 3, [8] * 3]]


def test_cmyk_jpeg_has_the_colours_of_its_rgb(encode: Encode, photo: Pixels) -> None:
    cmyk = encode(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"
    assert np.abs(pixels(cmyk).astype(int) - photo).mean() < 4


def test_an_animation_is_its_first_frame(encode: Encode) -> None:
    frames = [Image.fromarray(np.full((5, 7, 3), value, np.uint8)) for value in (40, 90, 200)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.unique(pixels(content)).tolist() == [40]


def test_a_camera_s_jpeg_of_several_pictures_is_its_first(encode: Encode, photo: Pixels) -> None:
    several = encode(
        Image.fromarray(photo), "MPO", save_all=True, append_images=[Image.fromarray(255 - photo)], quality=95
    )
    assert Image.open(io.BytesIO(several)).format == "MPO"
    assert np.abs(pixels(several).astype(int) - photo).mean() < 3


# -- upright

UPRIGHT_FROM: dict[int, Callable[[Pixels], Pixels]] = {  # how a camera stores an upright picture (EXIF 2.3, tag 0x0112)
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[::-1],
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT_FROM)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_a_turned_photo_equals_the_upright_one(encode: Encode, photo: Pixels, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(UPRIGHT_FROM[orientation](photo))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = encode(stored, kind, exif=exif, **options)
    prepared = prepare(content, square(32))
    assert (prepared.width, prepared.height) == (40, 24)
    assert np.abs(pixels(content).astype(int) - photo).max() <= (6 if kind == "JPEG" else 0)
    if kind != "JPEG":
        assert np.array_equal(prepared.pixels_3HW, prepare(encode(photo), square(32)).pixels_3HW)


@pytest.mark.parametrize("orientation", UPRIGHT_FROM)
def test_a_mask_is_turned_as_the_image_that_it_lies_over(encode: Encode, photo: Pixels, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    mask = np.where(photo > 100, photo, 0).astype(np.uint8)
    stored = np.ascontiguousarray(UPRIGHT_FROM[orientation](mask))
    assert np.array_equal(decode_mask(encode(stored, exif=exif), (24, 40)), mask.max(axis=2) > 0)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_is_none_changes_nothing(encode: Encode, photo: Pixels, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encode(photo, exif=exif)), photo)


# -- prepared


def test_prepared_pixels_are_contiguous_rgb_planes_of_the_input_size(encode: Encode, photo: Pixels) -> None:
    prepared = prepare(encode(photo), square(48))
    assert prepared.pixels_3HW.shape == (3, 48, 48)
    assert prepared.pixels_3HW.dtype == np.uint8
    assert prepared.pixels_3HW.flags.c_contiguous
    assert (prepared.width, prepared.height) == (40, 24)


def test_an_image_of_the_input_size_is_not_touched(encode: Encode) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(prepare(encode(noise), square(32)).pixels_3HW.transpose(1, 2, 0), noise)


def test_shrinking_averages_instead_of_picking(encode: Encode) -> None:
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 200
    inner = prepare(encode(stripes), square(32)).pixels_3HW[:, 2:-2, 2:-2].astype(np.float32)
    assert np.abs(inner - 100).max() <= 2


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (200, 5000)])
def test_extreme_shapes_are_prepared(encode: Encode, shape: tuple[int, int]) -> None:
    prepared = prepare(encode(np.full(shape, 77, np.uint8)), square(64))
    assert np.unique(prepared.pixels_3HW).tolist() == [77]
    assert (prepared.height, prepared.width) == shape


# -- settings of the input


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_a_filter_is_pillows_of_that_name(encode: Encode, photo: Pixels, name: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for picture, size in ((noise, (48, 32)), (photo, (64, 96))):  # height and width
        config = DetectorConfig(input_size=size, resampling=name).input
        expected = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling[name.upper()])
        found = prepare(encode(picture), config).pixels_3HW.transpose(1, 2, 0)
        assert np.array_equal(found, np.asarray(expected))


def test_the_input_may_be_taller_than_wide(encode: Encode, photo: Pixels) -> None:
    prepared = prepare(encode(photo), DetectorConfig(input_size="96x64").input)
    assert prepared.pixels_3HW.shape == (3, 96, 64)
    assert prepared.frame == (0, 0, 40, 24)
    assert prepared.window == (0, 0, 1, 1)


@settings(deadline=None)
@given(width=st.integers(1, 500), height=st.integers(1, 500), share=st.floats(0.01, 1))
def test_a_crop_is_the_middle_and_inside_the_image(width: int, height: int, share: float) -> None:
    left, top, inner_width, inner_height = centre_frame(width, height, share)
    for side, start, inner in ((width, left, inner_width), (height, top, inner_height)):
        assert 1 <= inner <= side
        assert abs(inner - share * side) <= max(0.5, 1 - share * side)
        assert 0 <= side - inner - 2 * start <= 1  # as much on one side as on the other
    assert centre_frame(width, height, 1.0) == (0, 0, width, height)


def test_a_cropped_image_is_the_middle_of_the_whole_image_resized(encode: Encode) -> None:
    """As in the official code, which resizes and then crops: at its border the filter sees the pixels beyond."""
    noise = np.random.default_rng(3).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    config = DetectorConfig(input_size=(48, 64), crop=0.5).input
    prepared = prepare(encode(noise), config)
    assert prepared.frame == (25, 15, 50, 30)
    assert prepared.window == (0.25, 0.25, 0.75, 0.75)
    assert (prepared.width, prepared.height) == (100, 60)
    whole = np.asarray(Image.fromarray(noise).resize((128, 96), Image.Resampling.BILINEAR))
    found = prepared.pixels_3HW.transpose(1, 2, 0)
    assert np.abs(found.astype(int) - whole[24:72, 32:96]).max() <= 1
    middle = np.asarray(Image.fromarray(noise[15:45, 25:75]).resize((64, 48), Image.Resampling.BILINEAR))
    assert np.array_equal(found[2:-2, 2:-2], middle[2:-2, 2:-2])


@pytest.mark.parametrize("crop", [1.0, 0.6])
@pytest.mark.parametrize("shape", [(120, 200), (333, 77)])
def test_a_region_comes_back_where_the_defect_lies_in_the_original(
    encode: Encode, shape: tuple[int, int], crop: float
) -> None:
    """A white rectangle; the prepared image itself stands in for the map."""
    height, width = shape
    box = (round(0.4 * width), round(0.5 * height), round(0.6 * width), round(0.7 * height))
    picture = np.zeros(shape, np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    prepared = prepare(encode(picture), DetectorConfig(input_size=64, crop=crop).input)
    map_HW = (prepared.pixels_3HW[0] / 256).astype(np.float32)
    (region,) = find_regions(map_HW, 0.5, prepared.frame)
    pixel = max(prepared.frame[2], prepared.frame[3]) / 64  # of the map, in the original
    assert max(abs(edge - other) for edge, other in zip(region.box, box, strict=True)) <= pixel + 1
    assert region.area == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.2)


@pytest.mark.parametrize(
    ("shape", "scale", "crop", "expected"),
    [
        ((200, 300), 1.0, 1.0, (200, 300)),
        ((200, 300), 0.5, 1.0, (100, 150)),
        ((200, 300), 2.0, 0.5, (200, 300)),
        ((200, 40), 1.0, 1.0, (200, 96)),  # at least one tile
        ((20, 30), 1.0, 1.0, (64, 96)),
    ],
)
def test_with_tiling_an_image_keeps_its_size_but_for_the_scale(
    encode: Encode, shape: tuple[int, int], scale: float, crop: float, expected: tuple[int, int]
) -> None:
    config = DetectorConfig(input_size=(64, 96), crop=crop, tiling=TilingConfig(scale=scale)).input
    noise = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    prepared = prepare(encode(noise), config)
    assert prepared.pixels_3HW.shape == (3, *expected)
    assert (prepared.height, prepared.width) == shape
    if scale == crop == 1 and shape == expected:
        assert np.array_equal(prepared.pixels_3HW.transpose(1, 2, 0), noise)


def test_an_image_too_large_to_be_scaled_is_an_image_error(encode: Encode) -> None:
    config = DetectorConfig(input_size=64, tiling=TilingConfig(scale=8)).input
    with pytest.raises(ImageError, match=r"16000 x 8000 pixels once scaled by 8; at most \d+"):
        prepare(encode(np.zeros((1000, 2000), np.uint8)), config)


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_a_masks_window_shows_what_the_crop_of_the_image_shows(encode: Encode, crop: float) -> None:
    """Each of the mask's pixels is one of the input: nearest neighbour moves none."""
    mask = np.random.default_rng(5).random((64, 96)) < 0.5
    prepared = prepare(encode(mask.astype(np.uint8) * 255), DetectorConfig(input_size=32, crop=crop).input)
    left, top, width, height = prepared.frame
    found = decode_mask(encode(mask.astype(np.uint8)), (height, width), prepared.window)
    assert np.array_equal(found, mask[top : top + height, left : left + width])


@given(width=st.integers(1, 500), height=st.integers(1, 500), share=st.floats(0.05, 1))
def test_the_window_of_a_crop_is_the_same_for_images_of_any_size_within_half_a_pixel(
    width: int, height: int, share: float
) -> None:
    """A region of interest is laid over images of any size: its own window is the crop's without rounding."""
    found = as_window(centre_frame(width, height, share), width, height)
    for edge, exact, side in zip(found, centre_window(share), (width, height, width, height), strict=True):
        assert abs(edge - exact) * side <= 1


def test_decoding_twice_gives_the_same(encode: Encode, photo: Pixels) -> None:
    content = encode(photo, "JPEG")
    assert np.array_equal(prepare(content, square(37)).pixels_3HW, prepare(content, square(37)).pixels_3HW)


@pytest.mark.parametrize(
    ("name", "is_image"),
    [("a.png", True), ("a/B.JPG", True), ("x.Tiff", True), ("a.png.txt", False), ("png", False), ("a.tar", False)],
)
def test_names_of_images_in_any_case(name: str, is_image: bool) -> None:
    assert is_image_name(name) is is_image


# -- masks

CLASS_IDS = np.array([[0, 1, 2], [3, 0, 255]], np.uint8)
DEFECT = CLASS_IDS > 0


def paletted(ids: Pixels) -> Image.Image:
    image = Image.fromarray(ids, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 1] + [number % 200 + 5 for number in range(759)])
    return image


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(CLASS_IDS, id="8-bit ids"),
        pytest.param(CLASS_IDS.astype(np.uint16), id="16-bit ids"),
        pytest.param(CLASS_IDS.astype(np.uint16) * 257, id="16-bit white"),
        pytest.param(Image.fromarray(DEFECT), id="1-bit"),
        pytest.param(paletted(CLASS_IDS), id="palette of ids"),
        pytest.param(np.stack([CLASS_IDS] * 3, axis=2), id="RGB grey"),
        pytest.param(np.stack([CLASS_IDS * 0, CLASS_IDS * 0, CLASS_IDS], axis=2), id="RGB blue alone"),
        pytest.param(np.stack([CLASS_IDS] * 3 + [CLASS_IDS * 0 + 255], axis=2), id="RGBA, opaque"),
        pytest.param(Image.fromarray(np.stack([CLASS_IDS, CLASS_IDS * 0 + 255], axis=2), "LA"), id="LA, opaque"),
    ],
)
def test_every_value_above_0_is_defect(encode: Encode, mask: Any) -> None:
    assert np.array_equal(decode_mask(encode(mask), (2, 3)), DEFECT)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(CLASS_IDS.astype(np.float32) / 255, id="float"),
        pytest.param(CLASS_IDS.astype(np.int32), id="32 bit"),
        pytest.param(Image.frombytes("I;16B", (3, 2), CLASS_IDS.astype(">u2").tobytes()), id="16 bit big-endian"),
    ],
)
def test_every_value_above_0_is_defect_in_tiff_too(encode: Encode, mask: Any) -> None:
    assert np.array_equal(decode_mask(encode(mask, "TIFF"), (2, 3)), DEFECT)


def test_a_mask_is_resized_to_its_nearest_pixels(encode: Encode) -> None:
    larger = decode_mask(encode(CLASS_IDS), (6, 12))
    assert larger.dtype == bool
    assert np.array_equal(larger, DEFECT.repeat(3, axis=0).repeat(4, axis=1))
    assert np.array_equal(decode_mask(encode(DEFECT.repeat(5, 0).repeat(5, 1)), (2, 3)), DEFECT)


def test_an_empty_mask_stays_empty_at_every_size(encode: Encode) -> None:
    black = encode(np.zeros((50, 70), np.uint8))
    for size in ((1, 1), (50, 70), (64, 64), (7, 300)):
        mask = decode_mask(black, size)
        assert mask.shape == size
        assert not mask.any()


def test_a_damaged_mask_is_an_image_error(encode: Encode, photo: Pixels) -> None:
    with pytest.raises(ImageError):
        decode_mask(truncated(encode(photo)), (8, 8))


# -- maps


@settings(max_examples=60, deadline=None)
@given(
    map_HW=arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(0, 1, width=32)
    )
)
def test_a_map_comes_back_within_half_a_step(map_HW: NDArray[np.float32]) -> None:
    decoded = decode_map(encode_map(map_HW))
    assert decoded.dtype == np.float32
    assert decoded.shape == map_HW.shape
    assert np.abs(decoded.astype(float) - map_HW.astype(float)).max() <= 1 / 131070 + 1e-7  # float32's own step
    assert np.array_equal(encode_map(decoded), encode_map(map_HW))


@pytest.mark.parametrize(("kind", "step"), [("png16", 1 / 131070), ("png8", 1 / 510), ("float16", 2**-12)])
def test_every_format_of_a_map_keeps_it_within_half_a_step(kind: MapFormat, step: float) -> None:
    map_HW = np.random.default_rng(0).random((37, 23), dtype=np.float32)
    decoded = decode_map(encode_map(map_HW, kind))
    assert decoded.shape == map_HW.shape
    assert np.abs(decoded - map_HW).max() <= step + 1e-7


@pytest.mark.parametrize("kind", ["png16", "png8", "float16"])
def test_a_map_is_averaged_down_to_the_size_asked_for(kind: MapFormat) -> None:
    map_HW = np.random.default_rng(0).random((32, 64), dtype=np.float32)
    small = decode_map(encode_map(map_HW, kind, 16))
    assert small.shape == (8, 16)
    assert np.abs(small - map_HW.reshape(8, 4, 16, 4).mean(axis=(1, 3))).max() <= 1 / 500
    assert decode_map(encode_map(map_HW, kind, 64)).shape == decode_map(encode_map(map_HW, kind, 999)).shape == (32, 64)


def test_a_stored_map_is_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        decode_map(buffer.getvalue())


def test_a_map_is_a_16_bit_grey_png_of_its_own_size() -> None:
    image = Image.open(io.BytesIO(encode_map(np.array([[0, 0.5, 1]], np.float32))))
    assert (image.format, image.size) == ("PNG", (3, 1))
    assert np.asarray(image).tolist() == [[0, 32768, 65535]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_encode_png_keeps_every_value(dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7), dtype=dtype, endpoint=True)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(values)))), values)


# -- what a check asks


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("defect", [False, True])
def test_a_mask_has_a_defect_where_any_pixel_is_above_0(mode: str, defect: bool, encode: Encode) -> None:
    pixels = np.zeros((6, 8), np.uint8)
    pixels[5, 7] = 255 * defect
    if mode == "P":
        image = Image.fromarray((pixels > 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 0, 0, 0])  # a number of a class, whatever its colour
    else:
        image = Image.fromarray(pixels.astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    assert has_defect(encode(image)) == defect


def test_facts_are_of_the_whole_upright_image(photo: NDArray[np.uint8], encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    content = encode(photo, "JPEG", exif=exif)
    assert examine(content) == ImageFacts(width=24, height=40, mode="RGB")
    assert decode(content).size == (24, 40)
    with pytest.raises(ImageError, match="damaged"):
        examine(encode(photo)[:-30])
