import io
import struct
import tracemalloc
import zlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin

from components.common.dicom import dicom_file, png_jpeg
from components.common.dicom.refusal import Refused
from components.common.dicom.render import render
from components.common.formats.quarantine import Reason
from tests.common.dicom.phantoms import dataset, to_bytes
from tests.common.dicom.phantoms import picture as phantom

Array = npt.NDArray[Any]
GRAY = phantom(60, 48)
GRAY16 = phantom(60, 48, bits=16)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_opencv(pixels: Array, ending: str = ".png") -> bytes:
    return bytes(cv2.imencode(ending, pixels)[1])


def decoded(content: bytes) -> Array:
    decode, header = png_jpeg.open_file(content)
    words, grayscale = decode()
    assert words.shape == (header.height, header.width) and grayscale.word.bits == 8 * words.itemsize
    return words


def refusal(content: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        decoded(content)
    return caught.value


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes, depth: int = 8, color: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return png_jpeg.PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(GRAY)),
        encoded(Image.fromarray(GRAY).convert("RGB")),
        encoded(Image.fromarray(GRAY).convert("RGBA")),
        encoded(Image.fromarray(GRAY).convert("LA")),
        encoded(Image.fromarray(GRAY).convert("P")),
        png(48, 60, b"".join(b"\0" + row.tobytes() for row in GRAY)),
    ],
    ids=["gray", "rgb", "rgba", "gray-alpha", "palette", "by-hand"],
)
def test_png_of_8_bits(content: bytes) -> None:
    assert png_jpeg.is_png_or_jpeg(content)
    np.testing.assert_array_equal(decoded(content), GRAY)


@pytest.mark.parametrize("content", [encoded(Image.fromarray(GRAY16)), by_opencv(GRAY16), by_opencv(np.dstack([GRAY16] * 3))])
def test_png_of_16_bits(content: bytes) -> None:
    np.testing.assert_array_equal(decoded(content), GRAY16)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg(mode: str, progressive: bool) -> None:
    content = encoded(Image.fromarray(GRAY).convert(mode), "JPEG", quality=95, progressive=progressive)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert png_jpeg.is_png_or_jpeg(content)
    assert np.abs(decoded(content).astype(int) - expected).max() <= 1


def test_rendering_agrees_with_the_same_pixels_in_dicom() -> None:
    decode, _ = png_jpeg.open_file(encoded(Image.fromarray(GRAY16)))
    from_png = render(decode(), size=24, bits=8, percentile=99).pixels
    from_dicom = render(dicom_file.prepare(*dicom_file.open_file(to_bytes(dataset(GRAY16))))(), size=24, bits=8, percentile=99).pixels
    np.testing.assert_array_equal(from_png, from_dicom)


def test_dicom_with_the_beginning_of_a_jpeg_as_preamble_is_dicom() -> None:
    content = to_bytes(dataset(GRAY))
    assert not png_jpeg.is_png_or_jpeg(content) and not png_jpeg.is_png_or_jpeg(png_jpeg.JPEG.ljust(128) + content[128:])


def test_ancillary_png_chunks_do_not_reach_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, decode_png = list[bytes](), png_jpeg._decode_png

    def spy(content: bytes) -> Array:
        seen.append(content)
        return decode_png(content)

    monkeypatch.setattr(png_jpeg, "_decode_png", spy)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", "Quartermaine^Ottilie")
    decode, _ = png_jpeg.open_file(encoded(Image.fromarray(GRAY), pnginfo=notes, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0", dpi=(72, 72)))
    np.testing.assert_array_equal(decode()[0], GRAY)
    assert seen and not any(word in seen[0] for word in (b"Quartermaine", b"eXIf", b"pHYs"))


def colourful() -> Image.Image:
    pixels = np.dstack([GRAY] * 3)
    pixels[3, 4] = (200, 10, 10)
    return Image.fromarray(pixels)


def half_transparent() -> Image.Image:
    image = Image.fromarray(GRAY).convert("RGBA")
    image.putpixel((5, 5), (9, 9, 9, 0))
    return image


@pytest.mark.parametrize(
    "content",
    [
        encoded(colourful()),
        encoded(colourful().convert("P")),
        encoded(Image.fromarray(np.dstack([GRAY, GRAY[::-1], GRAY])), "JPEG"),
        encoded(half_transparent()),
        encoded(Image.fromarray(GRAY).convert("1")),
        encoded(Image.fromarray(GRAY).convert("CMYK"), "JPEG"),
    ],
    ids=["one-red-pixel", "palette", "jpeg", "alpha", "one-bit", "cmyk"],
)
def test_colour_images_are_refused(content: bytes) -> None:
    assert refusal(content).reason is Reason.UNSUPPORTED_PHOTOMETRIC


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_truncated_files_are_unreadable(kind: str, share: float) -> None:
    content = encoded(Image.fromarray(GRAY), kind)
    assert refusal(content[: int(len(content) * share)]).reason is Reason.UNREADABLE


@pytest.mark.parametrize(
    "content",
    [
        damaged(encoded(Image.fromarray(GRAY))),
        png_jpeg.PNG + chunk(b"IEND", b""),
        png(0, 60, b""),
        png(48, 60, b"\0" * 100),
        png(48, 60, b"\x07" * 49 * 60),
        png_jpeg.JPEG,
        png_jpeg.JPEG + b"\xff" * 100,
        png_jpeg.PNG,
    ],
    ids=["flipped", "no-header", "no-pixels", "too-few", "bad-filter", "jpeg-magic", "jpeg-noise", "png-magic"],
)
def test_damaged_files_are_unreadable(content: bytes) -> None:
    assert refusal(content).reason is Reason.UNREADABLE


def huge_jpeg() -> bytes:
    content = encoded(Image.fromarray(GRAY), "JPEG")
    return content.replace(struct.pack(">HH", *GRAY.shape), struct.pack(">HH", 60_000, 60_000), 1)


@pytest.mark.parametrize("content", [png(100_000, 100_000, b""), png(50_001, 1000, b"", 16, 6), huge_jpeg()], ids=["png", "rgba", "jpeg"])
def test_bombs_are_refused_before_they_are_decoded(content: bytes) -> None:
    tracemalloc.start()
    found = refusal(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.reason is Reason.IMPLAUSIBLE_SIZE and peak < 1_000_000


ROWS = b"".join(b"\0" + row.tobytes() for row in phantom(200, 160))


@pytest.mark.parametrize("run", [bytes(2**20), bytes(range(256)) * 4096], ids=["zeros", "ramp"])
def test_png_data_that_inflate_far_beyond_the_pixels_are_refused(run: bytes) -> None:
    found = refusal(png(160, 200, ROWS + 20 * run))
    assert found.reason is Reason.UNREADABLE and "inflates far beyond" in found.detail


def test_png_that_ends_in_black_is_not_refused() -> None:
    pixels = np.vstack([phantom(100, 160), np.zeros((400, 160), "u1")])
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(pixels))), pixels)


def test_compressed_chunks_that_the_pixels_do_not_need_are_not_inflated() -> None:
    content = png(160, 200, ROWS)
    bomb = b"name\0\0" + zlib.compress(bytes(2**26))
    extra = b"".join(chunk(kind, bomb) for kind in (b"iCCP", b"zTXt", b"iTXt"))
    tracemalloc.start()
    np.testing.assert_array_equal(decoded(content[:33] + extra + content[33:]), phantom(200, 160))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_png_data_too_short_for_the_pixels_are_refused_before_they_are_decoded() -> None:
    assert "too short for 9000 x 5000 pixels" in refusal(png(5000, 9000, bytes(10_000), 16, 6)).detail


def claiming(height: int, width: int, **options: Any) -> bytes:
    content = encoded(Image.fromarray(GRAY), "JPEG", **options)
    return content.replace(struct.pack(">HH", *GRAY.shape), struct.pack(">HH", height, width), 1)


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 5}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("shape", [(68, 48), (120, 48), (600, 480), (6000, 4800)])
def test_a_jpeg_that_claims_more_pixels_than_it_holds_is_refused(shape: tuple[int, int], options: dict[str, Any]) -> None:
    found = refusal(claiming(*shape, **options))
    assert found.reason is Reason.UNREADABLE and found.detail == f"too short for {shape[0]} x {shape[1]} pixels"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_jpeg_with_an_end_marker_is_refused(share: float) -> None:
    content = encoded(Image.fromarray(phantom(200, 160)), "JPEG")
    start = content.index(b"\xff\xda")
    cut = content[: start + int(share * (len(content) - start))].rstrip(b"\xff")
    assert "too short" in refusal(cut + b"\xff\xd9").detail


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}], ids=str)
def test_a_whole_jpeg_that_ends_in_middle_gray_is_accepted(options: dict[str, Any]) -> None:
    pixels = np.vstack([phantom(100, 160), np.full((100, 160), 128, "u1")])
    assert (decoded(encoded(Image.fromarray(pixels), "JPEG", **options))[104:] == 128).all()


def test_a_thousand_mutations_are_rows_or_refusals() -> None:
    rng = np.random.default_rng(0)
    originals = [encoded(Image.fromarray(GRAY)), encoded(Image.fromarray(GRAY), "JPEG"), by_opencv(GRAY16)]
    for number in range(1000):
        content = bytearray(originals[number % 3])
        for position in rng.integers(0, len(content), rng.integers(1, 6)):
            content[position] = rng.integers(0, 256)
        if not png_jpeg.is_png_or_jpeg(bytes(content)):
            continue
        try:
            assert decoded(bytes(content)).dtype in (np.uint8, np.uint16)
        except Refused as found:
            assert found.reason in Reason
