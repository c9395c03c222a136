"""Pictures and videos, in and out: hostile files are read or refused in one line; output is atomic."""

from guava.photo.image import Photo, load_photo, resize_area, save_image, save_png, warp_affine
from guava.photo.video import VideoFrame, VideoReader, VideoWriter, read_video

__all__ = [
    "Photo",
    "VideoFrame",
    "VideoReader",
    "VideoWriter",
    "load_photo",
    "read_video",
    "resize_area",
    "save_image",
    "save_png",
    "warp_affine",
]
