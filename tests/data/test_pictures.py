"""Images of a folder that somebody names."""

import numpy as np
import pytest
from PIL import Image

from norton.common.errors import InputError, NortonWarning
from norton.data.pictures import read_pictures

pytestmark = pytest.mark.quick

SIZE = (3, 32, 32)
HALF = ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of rising brightness in two subfolders, beside what is none."""
    for level in range(10):
        path = tmp_path / ("cats" if level < 5 else "dogs") / f"{level}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 48), 25 * level, np.uint8)).save(path)
    (tmp_path / "readme.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_they_are_taken_evenly_from_all_subfolders(folder):
    whole = read_pictures(folder, SIZE, HALF, None)
    assert whole.shape == (10, *SIZE) and whole.isfinite().all()
    levels = whole.mean((1, 2, 3))
    assert (levels.diff() > 0).all()
    assert read_pictures(folder, SIZE, HALF, 4).mean((1, 2, 3)).tolist() == levels[[0, 2, 5, 7]].tolist()


def test_fewer_than_asked_for_is_said(folder):
    with pytest.warns(NortonWarning, match="holds 10 images, of 200 asked for"):
        assert len(read_pictures(folder, SIZE, HALF, 200)) == 10


def test_bad_folders(folder):
    (folder / "cats" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"cannot read .*0\.png as an image"):
        read_pictures(folder, SIZE, HALF, None)
    with pytest.raises(InputError, match="no folder at nowhere"):
        read_pictures("nowhere", SIZE, HALF, None)
    with pytest.raises(InputError, match="holds no image file; their names end in"):
        read_pictures(folder / "folder.png", SIZE, HALF, None)
