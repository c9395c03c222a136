"""Pictures in and out: one robust reader, atomic writers, and resampling with proper antialiasing."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from PIL import Image, ImageCms

from guava.container import write_atomically
from guava.errors import InputError

MAX_SOURCE_PIXELS = 150_000_000
"""Pictures with more pixels (12,247 squared) are refused: decoding one would need over 450 MB."""

MAX_SIDE = 4096
"""Longer pictures are reduced to this side, while decoding where the format can."""

MIN_SIDE = 32
"""Nothing of a person can be found in a smaller picture."""

# A closed list: other Pillow readers start external programs (EPS) or are rarely tested.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
_READABLE = "Use a JPEG, PNG, WebP, TIFF or GIF file."
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _TransparentError(Exception):
    pass


@dataclass(frozen=True)
class Photo:
    """A picture as it should be looked at: upright, in sRGB, 8 bits.

    Attributes:
        pixels: (H, W, 3) uint8 sRGB, not premultiplied; white where ``alpha`` is 0.
        alpha: (H, W) uint8, or None for an opaque picture.
        sha256: Hexadecimal digest of the file's bytes.
        name: File name without folder.
        notes: Sentences about what had to be done to the picture.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    sha256: str
    name: str
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Pixels."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.pixels.shape[0]


def load_photo(path: str | os.PathLike, max_side: int = MAX_SIDE) -> Photo:
    """Read a picture of any common kind.

    EXIF orientation and ICC profiles are applied; CMYK, 16-bit, grey and palette pictures become 8-bit RGB;
    of an animation the first frame is taken. Everything that changes what the user sees is noted.

    Args:
        path: The file.
        max_side: The longer side is reduced to this, in pixels.

    Raises:
        InputError: One line that names the file and says what to do: it is missing, empty, damaged, cut
            short, not a picture, smaller than ``MIN_SIDE`` or larger than ``MAX_SOURCE_PIXELS``.
    """
    path = Path(path)
    digest, head = file_digest(path)
    _refuse_by_signature(path, head)
    notes: list[str] = []
    with warnings.catch_warnings():
        # Pillow warns at 89 MP; our own limit decides.
        warnings.simplefilter("ignore")
        picture = _open(path)
        with picture:
            _check_size(path, picture.size)
            source_size = picture.size
            try:
                if getattr(picture, "is_animated", False) and picture.format != "MPO":
                    notes.append(f"'{path.name}' is an animation; its first frame was used.")
                if picture.format in ("JPEG", "MPO") and max(source_size) > max_side:
                    scale = max_side / max(source_size)
                    picture.draft(None, tuple(max(1, round(s * scale)) for s in source_size))
                orientation = _orientation(picture)
                picture.load()
                pixels, alpha = _to_srgb(picture, max_side, orientation, notes)
            except _TransparentError as error:
                raise InputError(
                    f"'{path}' is completely transparent.", "Export it with its background or person visible."
                ) from error
            except MemoryError as error:
                raise InputError(f"'{path}' does not fit in memory.", "Reduce the picture.") from error
            except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes
                reason = "cut short" if "truncated" in str(error).lower() else "damaged"
                raise InputError(
                    f"'{path}' is {reason} and cannot be decoded ({_one_line(error)}).",
                    "Export or download it again.",
                ) from error
    if max(source_size) > max_side:
        height, width = pixels.shape[:2]
        size = f"{source_size[0]}x{source_size[1]}"
        notes.append(f"'{path.name}' has {size} pixels; it was reduced to {width}x{height}.")
    return Photo(pixels, alpha, digest, path.name, tuple(notes))


def file_digest(path: Path) -> tuple[str, bytes]:
    """SHA-256 of a file and its first 64 bytes.

    Raises:
        InputError: The file is missing, a folder, unreadable or empty.
    """
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not a file.")
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    digest, head = hashlib.sha256(), b""
    try:
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                head = head or block[:64]
                digest.update(block)
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror or error}.") from error
    if not head:
        raise InputError(f"'{path}' is empty (0 bytes).", "Export or download it again.")
    return digest.hexdigest(), head


def _refuse_by_signature(path: Path, head: bytes) -> None:
    """Name the common things that are not readable pictures, so that the user learns what to do with them."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1") and "HEIF" not in _openable():
        raise InputError(
            f"'{path}' is a HEIC picture, which cannot be read here.",
            "Export it as JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible).",
        )
    if (brand and brand not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")) or (
        head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    ):
        raise InputError(f"'{path}' is a video, not a picture.", "Use 'guava track' for videos.")
    if head[:5] == b"%PDF-":
        raise InputError(f"'{path}' is a PDF document, not a picture.", _READABLE)


def _openable() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=_openable())
    except Image.DecompressionBombError as error:
        limit = MAX_SOURCE_PIXELS // 1_000_000
        raise InputError(f"'{path}' has more than {limit} million pixels.", "Reduce the picture.") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"'{path}' is not a picture that can be read, or is damaged.", _READABLE) from error
    except Exception as error:  # noqa: BLE001 - header parsers raise anything on hostile bytes
        raise InputError(f"'{path}' is damaged ({_one_line(error)}).", _READABLE) from error


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_SOURCE_PIXELS:
        limit = MAX_SOURCE_PIXELS // 1_000_000
        raise InputError(
            f"'{path}' has {width}x{height} pixels; at most {limit} million are read.",
            f"Reduce it to {MAX_SIDE} pixels on the longer side.",
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"'{path}' has only {width}x{height} pixels; at least {MIN_SIDE} on each side are needed.",
            "Use a picture on which the person can be seen.",
        )


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a damaged EXIF block must not cost us the picture
        return 1


def _to_srgb(
    picture: Image.Image, max_side: int, orientation: int, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decoded picture -> upright pixels (H, W, 3) and alpha (H, W) or None; reduced to ``max_side``."""
    profile = picture.info.get("icc_profile")
    picture = _reduce_depth(picture, notes)
    has_alpha = picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info
    if has_alpha:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("RGB", "CMYK", "L", "LAB"):
        picture = picture.convert("RGB")
    if max(picture.size) > max_side:
        scale = max_side / max(picture.size)
        size = tuple(max(1, round(s * scale)) for s in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if orientation in _TURNS:
        picture = picture.transpose(_TURNS[orientation])
    alpha = None
    if has_alpha:
        alpha = np.array(picture.getchannel("A"))
        picture = picture.convert("RGB")
    picture = _apply_profile(picture, profile, notes)
    pixels = np.array(picture)
    if alpha is not None:
        if not alpha.any():
            raise _TransparentError
        pixels[alpha == 0] = 255
        if alpha.min() == 255:
            alpha = None
    return pixels, alpha


def _reduce_depth(picture: Image.Image, notes: list[str]) -> Image.Image:
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    # Pillow gives 16-bit grey as I or I;16 with values up to 65535, and float TIFFs in any range.
    if picture.mode.startswith("I"):
        white = 65535.0 if top > 255 or picture.mode != "I" else 255.0
    else:
        white = 1.0 if top <= 1.0 else max(top, 255.0)
    if top > white:
        white = top
    notes.append(f"The picture has more than 8 bits a channel (mode {picture.mode}); it was reduced to 8.")
    return Image.fromarray(np.clip(values * (255.0 / white) + 0.5, 0, 255).astype(np.uint8))


def _apply_profile(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(source).lower() and picture.mode == "RGB":
                return picture
            return ImageCms.profileToProfile(picture, source, _srgb(), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("The picture's colour profile could not be applied; colours may be off.")
    return picture.convert("RGB")


def _srgb():
    return ImageCms.createProfile("sRGB")


def save_image(path: str | os.PathLike, pixels: np.ndarray, quality: int = 95) -> None:
    """Write a picture atomically; the suffix (.png, .jpg, .webp) chooses the format.

    Args:
        path: Where to.
        pixels: (H, W), (H, W, 3) or (H, W, 4); uint8, or floats in [0, 1]. Not premultiplied.
        quality: For JPEG and WebP.

    Raises:
        InputError: Unknown suffix, or the file cannot be written (nothing is left behind).
    """
    path = Path(path)
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"Cannot write '{path}': unknown suffix.", "Use .png, .jpg or .webp.")
    picture = Image.fromarray(to_eight_bits(pixels))
    if kind == "JPEG" and picture.mode == "RGBA":
        raise InputError(f"Cannot write '{path}': JPEG has no transparency.", "Use .png or .webp.")
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({} if kind == "PNG" else {"quality": quality}))
    write_atomically(path, buffer.getvalue())


def save_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """:func:`save_image` for PNG, whatever the suffix."""
    buffer = io.BytesIO()
    Image.fromarray(to_eight_bits(pixels)).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of any shape, uint8 or floats in [0, 1], as contiguous uint8."""
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        pixels = np.clip(pixels * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def resize_area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by exact area averaging where an axis shrinks, bilinearly where it grows.

    Args:
        image: (H, W) or (H, W, C), uint8 or float.
        size: (width, height) of the result.

    Returns:
        (height, width) or (height, width, C) of the same dtype (floats become float32).
    """
    image = np.asarray(image)
    height, width = image.shape[:2]
    steps = [(size[0], height), (size[0], size[1])]

    def scale(plane: Image.Image) -> Image.Image:
        for target in steps:
            if target != plane.size:
                shrinks = target[0] < plane.size[0] or target[1] < plane.size[1]
                plane = plane.resize(target, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
        return plane

    if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2] == 3):
        return np.asarray(scale(Image.fromarray(np.ascontiguousarray(image))))
    planes = image[..., None] if image.ndim == 2 else image
    channels = [planes[..., c].astype(np.float32) for c in range(planes.shape[2])]
    out = np.stack([np.asarray(scale(Image.fromarray(c))) for c in channels], axis=-1)
    out = out.reshape(size[1], size[0], *image.shape[2:])
    return np.clip(out + 0.5, 0, 255).astype(np.uint8) if image.dtype == np.uint8 else out


def warp_affine(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    border: float | tuple[float, ...] | str = 0.0,
) -> np.ndarray:
    """Resample a picture under an affine map, averaging over the area of each target pixel when it shrinks.

    Args:
        image: (H, W) or (H, W, C), uint8 or float.
        matrix: (3, 3) source pixels -> target pixels (centre of the top-left pixel at (0.5, 0.5)).
        size: (width, height) of the result.
        border: Value(s) outside the source, or "edge" to repeat its border.

    Returns:
        (height, width) or (height, width, C) of the same dtype (floats become float32).

    Raises:
        ValueError: The matrix is singular.
    """
    image = np.asarray(image)
    planes = np.ascontiguousarray(image[..., None] if image.ndim == 2 else image)
    if planes.dtype != np.uint8:
        planes = planes.astype(np.float32, copy=False)
    matrix = np.asarray(matrix, dtype=np.float64)
    if abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise ValueError("the affine map is singular")
    # Source pixels per target pixel along each source axis: whole factors are averaged first, the rest by
    # 2 x 2 samples of each target pixel.
    shrink = 1.0 / np.maximum(np.linalg.norm(matrix[:2, :2], axis=0), 1e-6)
    factor = np.clip(np.floor(shrink + 1e-6), 1, planes.shape[1::-1]).astype(int)
    if factor.max() > 1:
        planes = _box_reduce(planes, int(factor[0]), int(factor[1]))
    inverse = np.linalg.inv(matrix @ np.diag([factor[0], factor[1], 1.0]))
    samples = 2 if shrink.max() > 1.0 + 1e-6 else 1
    edge = isinstance(border, str)
    if edge and border != "edge":
        raise ValueError(f"unknown border {border!r}")
    fill = np.broadcast_to(np.asarray(0.0 if edge else border, dtype=np.float32), (planes.shape[2],)).copy()
    limits = np.array([image.shape[1] / factor[0], image.shape[0] / factor[1]])
    out = _sample(planes, inverse, size[1], size[0], samples, edge, fill, limits)
    out = out.reshape(size[1], size[0], *image.shape[2:])
    return np.clip(out + 0.5, 0, 255).astype(np.uint8) if image.dtype == np.uint8 else out


@numba.njit(cache=True)
def _box_reduce(image, kx, ky):
    height, width, channels = image.shape
    out = np.zeros(((height + ky - 1) // ky, (width + kx - 1) // kx, channels), np.float32)
    for y in range(out.shape[0]):
        y1 = min(height, (y + 1) * ky)
        for x in range(out.shape[1]):
            x1 = min(width, (x + 1) * kx)
            n = (y1 - y * ky) * (x1 - x * kx)
            for c in range(channels):
                total = 0.0
                for v in range(y * ky, y1):
                    for u in range(x * kx, x1):
                        total += image[v, u, c]
                out[y, x, c] = total / n
    return out


@numba.njit(cache=True)
def _sample(image, inverse, rows, columns, samples, edge, fill, limits):
    height, width, channels = image.shape
    out = np.zeros((rows, columns, channels), np.float32)
    weight = 1.0 / (samples * samples)
    for y in range(rows):
        for x in range(columns):
            for k in range(samples * samples):
                tx = x + (k % samples + 0.5) / samples
                ty = y + (k // samples + 0.5) / samples
                sx = inverse[0, 0] * tx + inverse[0, 1] * ty + inverse[0, 2]
                sy = inverse[1, 0] * tx + inverse[1, 1] * ty + inverse[1, 2]
                if not edge and (sx < 0 or sy < 0 or sx > limits[0] or sy > limits[1]):
                    for c in range(channels):
                        out[y, x, c] += weight * fill[c]
                    continue
                px = min(max(sx - 0.5, 0.0), width - 1.0)
                py = min(max(sy - 0.5, 0.0), height - 1.0)
                x0, y0 = int(px), int(py)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                fx, fy = px - x0, py - y0
                for c in range(channels):
                    top = image[y0, x0, c] * (1 - fx) + image[y0, x1, c] * fx
                    bottom = image[y1, x0, c] * (1 - fx) + image[y1, x1, c] * fx
                    out[y, x, c] += weight * (top * (1 - fy) + bottom * fy)
    return out
