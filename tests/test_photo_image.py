"""Hostile and unusual pictures: read as people see them, or refused in one line."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from guava.errors import InputError
from guava.photo import load_photo, resize_area, save_image, save_png, warp_affine
from guava.photo.image import MAX_SIDE, MAX_SOURCE_PIXELS


def _quadrants(width=120, height=80):
    """Red, green / blue, white; distinguishable under every orientation."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = 255
    return pixels


def _refused(path, *words):
    with pytest.raises(InputError) as caught:
        load_photo(path)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    assert caught.value.hint or "There is no file" in line or "folder" in line
    for word in words:
        assert word in line.lower()


def test_reads_pixels_name_and_digest(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(_quadrants()).save(path)
    photo = load_photo(path)
    assert np.array_equal(photo.pixels, _quadrants())
    assert photo.alpha is None and photo.notes == () and photo.name == "a.png"
    assert (photo.width, photo.height) == (120, 80)
    assert photo.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_refuses_missing_folder_and_empty(tmp_path):
    _refused(tmp_path / "nothing.jpg", "no file")
    _refused(tmp_path, "folder")
    (tmp_path / "empty.jpg").write_bytes(b"")
    _refused(tmp_path / "empty.jpg", "empty")


def test_refuses_what_is_not_a_picture(tmp_path):
    for name, data, word in [
        ("text.jpg", b"hello, I am no picture" * 50, "not a picture"),
        ("page.png", b"%PDF-1.7 .....", "pdf"),
        ("film.jpg", b"\0\0\0\x20ftypisom" + b"\0" * 100, "guava track"),
        ("phone.heic", b"\0\0\0\x20ftypheic" + b"\0" * 100, "heic"),
    ]:
        (tmp_path / name).write_bytes(data)
        _refused(tmp_path / name, word)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_refuses_truncated(tmp_path, kind, part):
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    data = buffer.getvalue()
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(part * len(data))])
    _refused(path)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged"
    survived = 0
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(_quadrants()).save(buffer, kind)
        for _ in range(12):
            data = bytearray(buffer.getvalue())
            for position in rng.integers(0, len(data), 10):
                data[position] = rng.integers(256)
            path.write_bytes(bytes(data))
            try:
                pixels = load_photo(path).pixels
                assert pixels.dtype == np.uint8 and pixels.ndim == 3
                survived += 1
            except InputError as error:
                assert "\n" not in str(error)
    assert survived < 60


def test_refuses_tiny(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    _refused(tmp_path / "one.png", "1x1")


def test_huge_jpeg_is_reduced_while_decoding(tmp_path):
    path = tmp_path / "huge.jpg"
    Image.new("L", (12000, 8000), 90).save(path)
    photo = load_photo(path)
    assert max(photo.width, photo.height) == MAX_SIDE
    assert photo.pixels.shape[2] == 3 and abs(int(photo.pixels.mean()) - 90) <= 1
    assert "12000x8000" in photo.notes[0]


def test_refuses_decompression_bombs(tmp_path):
    for side in (13000, 40000):
        path = tmp_path / f"bomb{side}.png"
        # One bit a pixel compresses to almost nothing; the header alone must be enough to refuse it.
        Image.new("1", (side, side)).save(path)
        assert side * side > MAX_SOURCE_PIXELS
        _refused(path, "pixels")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = _quadrants()
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(undo(upright))).save(path, exif=exif)
    assert np.array_equal(load_photo(path).pixels, upright)


def test_cmyk_sixteen_bit_grey_and_palette(tmp_path):
    grey = np.linspace(0, 255, 120).astype(np.uint8)[None].repeat(80, 0)
    Image.fromarray(_quadrants()).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(load_photo(tmp_path / "c.jpg").pixels[10, 10].astype(int) - (255, 0, 0)).max() < 12
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert np.array_equal(load_photo(tmp_path / "g.png").pixels, grey[..., None].repeat(3, 2))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "g16.png")
    deep = load_photo(tmp_path / "g16.png")
    assert np.array_equal(deep.pixels[..., 1], grey) and "8 bits" in deep.notes[0]
    Image.fromarray(_quadrants()).quantize(8).save(tmp_path / "p.png")
    assert np.abs(load_photo(tmp_path / "p.png").pixels.astype(int) - _quadrants()).max() <= 2
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "f.tiff")
    assert np.abs(load_photo(tmp_path / "f.tiff").pixels[..., 0].astype(int) - grey).max() <= 1


def test_alpha_is_kept_and_hidden_colours_are_white(tmp_path):
    rgba = np.dstack([_quadrants(), np.full((80, 120), 200, np.uint8)])
    rgba[:, :30, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    photo = load_photo(tmp_path / "a.png")
    assert np.array_equal(photo.alpha, rgba[..., 3])
    assert (photo.pixels[:, :30] == 255).all()
    assert np.array_equal(photo.pixels[:, 30:], rgba[:, 30:, :3])
    rgba[..., 3] = 255
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    assert load_photo(tmp_path / "opaque.png").alpha is None
    rgba[..., 3] = 0
    Image.fromarray(rgba).save(tmp_path / "nothing.png")
    _refused(tmp_path / "nothing.png", "transparent")


def test_animated_gif_gives_its_first_frame(tmp_path):
    first = Image.fromarray(_quadrants())
    first.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (120, 80), "black")] * 3)
    photo = load_photo(tmp_path / "a.gif")
    assert tuple(photo.pixels[5, 5]) == (255, 0, 0)
    assert "animation" in photo.notes[0]


def test_colour_profiles(tmp_path):
    xyz = ImageCms.createProfile("XYZ")
    lab = ImageCms.ImageCmsProfile(xyz).tobytes()
    plain = Image.fromarray(_quadrants())
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain.save(tmp_path / "s.png", icc_profile=srgb)
    assert np.array_equal(load_photo(tmp_path / "s.png").pixels, _quadrants())
    plain.save(tmp_path / "x.png", icc_profile=lab)
    photo = load_photo(tmp_path / "x.png")
    # Either applied (then the colours change) or said not to be.
    assert photo.notes or not np.array_equal(photo.pixels, _quadrants())
    plain.save(tmp_path / "broken.png", icc_profile=b"this is no profile")
    photo = load_photo(tmp_path / "broken.png")
    assert "profile" in photo.notes[0] and np.array_equal(photo.pixels, _quadrants())


def test_saving(tmp_path):
    save_image(tmp_path / "a.png", _quadrants() / 255.0)
    assert np.array_equal(load_photo(tmp_path / "a.png").pixels, _quadrants())
    save_png(tmp_path / "b.png", _quadrants())
    assert np.array_equal(load_photo(tmp_path / "b.png").pixels, _quadrants())
    with pytest.raises(InputError, match="suffix"):
        save_image(tmp_path / "a.xyz", _quadrants())
    with pytest.raises(InputError, match="Cannot write"):
        save_image(tmp_path / "no" / "a.png", _quadrants())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_warp_maps_coordinates():
    # A linear ramp is reproduced exactly by bilinear sampling and by averaging over symmetric areas.
    x, y = np.meshgrid(np.arange(96) + 0.5, np.arange(64) + 0.5)
    ramp = np.stack([x, y], -1)
    for scale, angle in [(1.0, 0.0), (1.7, 0.3), (0.45, -0.5), (0.21, 0.0)]:
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
        matrix[:2, 2] = np.array([8, 8]) - matrix[:2, :2] @ np.array([48, 32])
        out = warp_affine(ramp, matrix, (16, 16), "edge")
        inverse = np.linalg.inv(matrix)
        centre = inverse[:2, :2] @ np.array([8.5, 7.5]) + inverse[:2, 2]
        assert np.allclose(out[7, 8], centre, atol=0.02), (scale, angle)


def test_warp_antialiases_and_fills_the_border():
    stripes = np.zeros((64, 64), np.float32)
    stripes[:, ::2] = 1.0
    small = warp_affine(stripes, np.diag([0.3, 0.3, 1.0]), (18, 18))
    assert np.abs(small - 0.5).max() < 0.12
    picture = np.full((10, 10, 3), 200, np.uint8)
    out = warp_affine(picture, np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1.0]]), (20, 10), (1, 2, 3))
    assert (out[:, :5] == (1, 2, 3)).all() and (out[:, 15:] == (1, 2, 3)).all()
    assert (out[:, 5:15] == 200).all()
    assert out.dtype == np.uint8
    with pytest.raises(ValueError, match="singular"):
        warp_affine(picture, np.zeros((3, 3)), (4, 4))


def test_resize_area_averages():
    picture = np.arange(64, dtype=np.float32).reshape(8, 8)
    assert np.allclose(resize_area(picture, (4, 4)), picture.reshape(4, 2, 4, 2).mean((1, 3)))
    assert resize_area(np.zeros((8, 6, 3), np.uint8), (3, 16)).shape == (16, 3, 3)
    assert resize_area(np.zeros((8, 6, 5)), (3, 4)).shape == (4, 3, 5)
