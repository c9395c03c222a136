"""Pictures and videos in and out: decoding hostile files, resampling, encoding."""
