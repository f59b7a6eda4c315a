"""Pictures to look for objects in: image files, folders, and the frames of a video; and a video of what was drawn."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from norton.common.errors import InputError
from norton.data.pictures import image_files, is_image, read_picture


class Frame(NamedTuple):
    """An image (3, H, W) uint8, and what it is called."""

    name: str
    image: Tensor


def is_video(path: str | Path) -> bool:
    """Whether a path is a file that is no image by its ending."""
    return Path(path).is_file() and not is_image(path)


def frames(path: str | Path, limit: int | None = None) -> Iterator[Frame]:
    """The frames of a video, or the images of a file or folder; the first `limit` of them.

    Raises InputError for what cannot be read.
    """
    if is_video(path):
        return islice(_video_frames(Path(path)), limit)
    return (Frame(file.name, _pixels(read_picture(file).convert("RGB"))) for file in image_files(path)[:limit])


def frame_rate(path: str | Path) -> Fraction:
    """Frames per second of a video, 25 where it does not say."""
    with av.open(str(path)) as container:
        return Fraction(container.streams.video[0].average_rate or 25)


def write_video(path: str | Path, images: Iterable[Tensor], rate: Fraction | int) -> Path:
    """Write images (3, H, W) uint8 of one size as H.264; whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        whole = Path(folder) / path.name
        try:
            _encode(whole, images, rate)
            os.replace(whole, path)
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"cannot write {path}: {error}; choose a writable folder with space left") from None
    return path


def _video_frames(path: Path) -> Iterator[Frame]:
    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video; give a video, an image, or a folder of images")
            for number, frame in enumerate(container.decode(video=0), 1):
                # A telephone stores how it was held beside the pixels.
                turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield Frame(f"frame {number}", _pixels(turned))
    except (av.FFmpegError, OSError) as error:
        where = f"after {number} frames " if number else ""
        raise InputError(
            f"cannot read the video {path} {where}({error.strerror}); convert it or fetch it again"
        ) from None
    if not number:
        raise InputError(f"{path}: a video without frames; fetch it again")


def _encode(path: Path, images: Iterable[Tensor], rate: Fraction | int) -> None:
    with av.open(str(path), "w") as container:
        stream = None
        for image in images:
            height, width = (side // 2 * 2 for side in image.shape[-2:])  # colours are stored for 2×2 pixels
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            pixels = image[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def _pixels(image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
