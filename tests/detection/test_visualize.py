"""Drawing what was found; frames of images, folders and videos; the program."""

import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from helpers.commands import run_here, written
from PIL import Image

import norton
from detection import build_detector, save_detector
from detection.drawing import COLOURS, draw, side_by_side, stacked, titled
from detection.frames import frame_rate, frames, write_video
from detection.visualize import free_name
from norton.cli.tables import labels
from norton.common.errors import InputError

RATES = "[0.75]*20"
GREY = torch.full((3, 200, 300), 128, dtype=torch.uint8)


def colour(label):
    text = COLOURS[label % len(COLOURS)]
    return torch.tensor([int(text[i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8)


def found(scores, **more):
    boxes = torch.tensor([[20.0, 40.0, 120.0, 160.0], [150.0, 40.0, 250.0, 160.0]])
    return {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor(scores), **more}


def is_drawn(picture, x, y, label, scale=2):
    return bool((picture[:, scale * y, scale * x] == colour(label)).all())


def test_boxes_stand_where_they_were_found_on_the_enlarged_image():
    picture = draw(GREY, found([0.9, 0.8]), {1: "cat"})
    assert picture.shape == (3, 400, 600)
    for label, left, right in ((1, 20, 120), (2, 150, 250)):
        assert all(is_drawn(picture, x, 100, label) for x in (left, right))
        assert is_drawn(picture, (left + right) // 2, 160, label)
    assert (picture[:, 2 * 100, 2 * 70] == 128).all()


def test_what_scores_too_little_is_not_drawn():
    picture = draw(GREY, found([0.9, 0.4]), {}, threshold=0.5)
    assert is_drawn(picture, 20, 100, 1)
    assert not is_drawn(picture, 150, 100, 2)
    assert (draw(GREY, found([0.1, 0.1]), {}) == 128).all()


def test_masks_and_keypoints():
    masks = torch.zeros(2, 1, 200, 300)
    masks[0, 0, 50:150, 30:60] = 0.9
    points = torch.zeros(2, 4, 3)
    points[0, :] = torch.tensor([90.0, 100.0, 1.0])
    points[1, :] = torch.tensor([200.0, 100.0, 1.0])
    picture = draw(GREY, found([0.9, 0.2], masks=masks, keypoints=points), {})
    inside, outside = picture[:, 200, 90], picture[:, 200, 140]
    assert not torch.equal(inside, outside)
    assert (outside == 128).all()
    assert is_drawn(picture, 90, 100, 1)
    assert (picture[:, 200, 400] == 128).all()  # the keypoint of what scores too little


def test_pictures_are_put_together():
    one, two = titled(GREY, "dense\n5 frames per second"), titled(GREY, "compressed\n6 frames per second")
    assert one.shape[2] == 300 and one.shape[1] > 200 + 2 * 14
    assert torch.equal(one[:, -200:], GREY)
    assert (one[:, :-200] < 100).any()  # text
    row = side_by_side([one, two], gap=4)
    assert row.shape == (3, one.shape[1], 604)
    assert stacked([row, GREY], gap=5).shape == (3, one.shape[1] + 200 + 10, 604)


def film(path, count=6, size=(48, 64), rate=10):
    images = [torch.full((3, *size), 40 * number, dtype=torch.uint8) for number in range(count)]
    return write_video(path, images, rate), images


def test_a_video_comes_back(tmp_path):
    path, images = film(tmp_path / "film.mp4")
    assert frame_rate(path) == 10
    back = list(frames(path))
    assert [frame.name for frame in back] == [f"frame {number}" for number in range(1, 7)]
    for frame, image in zip(back, images, strict=True):
        assert frame.image.shape == image.shape
        assert (frame.image.float() - image.float()).abs().mean() < 4  # H.264 loses a little
    assert len(list(frames(path, 2))) == 2
    assert written(tmp_path) == {"film.mp4"}


@pytest.mark.parametrize("rate", [Fraction(2, 5), Fraction(30000, 1001), 60])
def test_frame_rates_stay(rate, tmp_path):
    path, _ = film(tmp_path / "film.mp4", rate=rate)
    assert frame_rate(path) == rate


def test_sides_of_a_video_are_even(tmp_path):
    path, _ = film(tmp_path / "odd.mp4", size=(49, 65))
    assert next(iter(frames(path))).image.shape == (3, 48, 64)


def test_a_video_that_breaks_off_while_it_is_written_leaves_nothing(tmp_path):
    def breaking():
        yield torch.zeros(3, 48, 64, dtype=torch.uint8)
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        write_video(tmp_path / "film.mp4", breaking(), 10)
    assert not list(tmp_path.iterdir())


def test_videos_that_cannot_be_read(tmp_path):
    path, _ = film(tmp_path / "film.mp4")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:900])
    (tmp_path / "text.mp4").write_text("no film")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    messages = {"cut.mp4": "cut.mp4", "text.mp4": "cannot read the video .*text.mp4", "sound.wav": "holds no video"}
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            list(frames(tmp_path / name))


def test_pictures_of_16_bits_keep_their_greys(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    (one,) = frames(tmp_path)
    assert one.image[0].tolist() == [[0, 128, 255]]


def test_images_of_one_stem_get_a_picture_each(tmp_path):
    first = free_name(tmp_path, "a.jpg")
    assert first.name == "a.png"
    first.write_text("taken")
    assert free_name(tmp_path, "a.png").name == "a.png.png"


def test_names_tell_files_apart():
    assert labels(["x/a.pt", "x/b.pt"]) == ["a", "b"]
    assert labels(["x/model.pt", "y/model.pt"]) == ["x", "y"]
    assert labels(["x/y/model.pt", "z/y/model.pt"]) == ["x/y/model.pt", "z/y/model.pt"]
    with pytest.raises(InputError, match="given twice"):
        labels(["x/a.pt", "x/../x/a.pt"])


def test_folders_and_files(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [frame.name for frame in frames(tmp_path)] == ["a.jpg", "b.png"]
    (one,) = frames(tmp_path / "b.png")
    assert one.image.shape == (3, 10, 20) and one.image[0].unique().tolist() == [255]


@pytest.fixture(scope="module")
def files(tmp_path_factory, thin_heads_throughout):
    """Two small detectors with random weights, images, and a film."""
    root = tmp_path_factory.mktemp("files")
    options = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_test": 9, "box_score_thresh": 0.0}
    options |= {"box_detections_per_img": 2, "num_keypoints": 4}
    for name, backbone in (("dense", norton.build("resnet_50")), ("small", norton.build("resnet_50", 1, RATES))):
        save_detector(
            build_detector("keypointrcnn", backbone, 2, categories={1: "digit"}, **options), root / f"{name}.pt"
        )
    (root / "images").mkdir()
    for number in range(3):
        Image.effect_noise((64, 48), 90).convert("RGB").save(root / "images" / f"{number}.png")
    film(root / "film.mp4", 4)
    return root


def visualize(files, settings, out, monkeypatch, capsys):
    pair = f"checkpoint={files}/dense.pt compressed={files}/small.pt timed_images=2 repeats=2 threshold=0"
    return run_here(f"python -m detection.visualize {pair} {settings} out={out}", monkeypatch, capsys)


def test_program_on_a_folder(files, tmp_path, monkeypatch, capsys):
    code, out, error = visualize(files, f"images={files}/images limit=2", tmp_path / "a", monkeypatch, capsys)
    assert code == 0, error
    assert "times fewer MACs" in out
    assert written(tmp_path / "a") == {"config.yaml", "metrics.json", "table.md", "images", "picture.png"}
    assert written(tmp_path / "a" / "images") == {"0.png", "1.png"}
    with Image.open(tmp_path / "a" / "images" / "0.png") as picture:
        assert picture.width == 2 * 8 * 64 + 6
    networks = json.loads((tmp_path / "a" / "metrics.json").read_text())["networks"]
    assert list(networks) == ["dense", "compressed"]
    for network in networks.values():
        assert network["fps"] == pytest.approx(1000 / network["ms"])
        assert network["form"].endswith((", channels-last", ", contiguous"))
    assert networks["compressed"]["macs"] < networks["dense"]["macs"]


def test_program_on_a_video(files, tmp_path, monkeypatch, capsys):
    code, _, error = visualize(files, f"images={files}/film.mp4 latency=eager", tmp_path / "a", monkeypatch, capsys)
    assert code == 0, error
    assert {"video.mp4", "picture.png"} <= written(tmp_path / "a")
    assert len(list(frames(tmp_path / "a" / "video.mp4"))) == 4
    assert frame_rate(tmp_path / "a" / "video.mp4") == 10


@pytest.mark.parametrize("settings, message", [
    ("images=nowhere", "nothing at nowhere"),
    ("images=README.md", "cannot read the video README.md"),
    ("images=docs/demo.png threshold=2", "threshold is 2"),
    ("images=docs/demo.png limit=0", "limit is 0"),
    ("images=docs/demo.png latency=fast", "latency is 'fast'"),
    ("images=tests", "holds no image file"),
    ("checkpoint=null", "no checkpoint"),
    ("images=docs/demo.png +options.min_size=wide", "min_size is 'wide'"),
    ("compressed=checkpoints/resnet_56_clutter.pt", "holds no detector"),
    ("+options.colour=1", "has no option colour"),
])  # fmt: skip
def test_bad_input(settings, message, files, tmp_path, monkeypatch, capsys):
    code, _, error = visualize(files, settings, tmp_path / "a", monkeypatch, capsys)
    assert code == 2
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "a").exists()


def test_a_damaged_image_in_a_folder(files, tmp_path, monkeypatch, capsys):
    shutil.copytree(files / "images", tmp_path / "images")
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    code, _, error = visualize(files, f"images={tmp_path}/images", tmp_path / "a", monkeypatch, capsys)
    assert code == 2 and "cannot read" in error and "0.png" in error
