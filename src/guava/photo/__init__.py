"""Pictures and videos, in and out."""

from guava.photo.image import Photo, load_photo, resize_area, save_image, save_png, warp_affine

__all__ = ["Photo", "load_photo", "resize_area", "save_image", "save_png", "warp_affine"]
