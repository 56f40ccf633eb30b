import random
import re

import pytest

from drive_vlm.builders.stitching import (
    LAYOUT,
    QUANTISATION_ERROR,
    denormalise_tags,
    from_stitched,
    normalise_tags,
    stitch,
    to_stitched,
)


def test_hand_computed_point():
    # CAM_BACK is column 1, row 1: x = 896 + 1088.3 * 896/1600 = 1505.448 of 2688, y = 448 + 497.5 * 448/900 of 896.
    across, down = to_stitched("CAM_BACK", 1088.3, 497.5)
    assert across == pytest.approx(1505.448 / 2688 * 1000) == pytest.approx(560.0625)
    assert down == pytest.approx((448 + 247.644444) / 896 * 1000) == pytest.approx(776.388889)
    assert normalise_tags("see <c1,CAM_BACK,1088.3,497.5>.") == "see <c1,CAM_BACK,[560, 776]>."
    assert denormalise_tags("see <c1,CAM_BACK,[560, 776]>.") == "see <c1,CAM_BACK,1088.0,496.8>."


def test_corners_fall_on_the_tiles():
    assert to_stitched("CAM_FRONT_LEFT", 0, 0) == (0, 0)
    assert to_stitched("CAM_BACK_RIGHT", 1600, 900) == pytest.approx((1000, 1000))
    assert to_stitched("CAM_FRONT", 0, 900) == pytest.approx((1000 / 3, 500))


@pytest.mark.parametrize("camera", LAYOUT)
def test_round_trip_is_bounded_by_the_quantisation(camera):
    dice = random.Random(0)
    for _ in range(300):
        x, y = round(dice.uniform(0, 1600), 1), round(dice.uniform(0, 900), 1)
        text = denormalise_tags(normalise_tags(f"<c7,{camera},{x},{y}>"))
        back = [float(number) for number in re.findall(r"\d+\.\d+", text)]
        assert abs(back[0] - x) <= QUANTISATION_ERROR[0] + 0.051
        assert abs(back[1] - y) <= QUANTISATION_ERROR[1] + 0.051
        assert from_stitched(camera, *to_stitched(camera, x, y)) == pytest.approx((x, y))
    assert pytest.approx((2.4, 0.9)) == QUANTISATION_ERROR  # far below the 16 px of DriveLM's match


def test_nothing_is_mapped_twice():
    pixels = "<c1,CAM_FRONT,10.5,20.5> and <c2, CAM_BACK_LEFT, 5, 6>"
    normalised = normalise_tags(pixels)
    assert normalise_tags(normalised) == normalised and "[" in normalised
    assert denormalise_tags(pixels) == pixels


def test_odd_tags():
    assert denormalise_tags("<c1,CAM_TOP,[1, 2]> <c1,CAM_FRONT,[ 900.5 ,2]>") == (
        "<c1,CAM_TOP,[1, 2]> <c1,CAM_FRONT,1600.0,3.6>"
    )
    with pytest.raises(ValueError, match="CAM_TOP"):
        normalise_tags("<c1,CAM_TOP,1.0,2.0>")


def test_each_view_lands_on_its_tile():
    from PIL import Image

    colours = {camera: (40 * index, 200 - 30 * index, 17) for index, camera in enumerate(LAYOUT)}
    picture = stitch({camera: Image.new("RGB", (1600, 900), colour) for camera, colour in colours.items()})
    assert picture.size == (2688, 896)
    order = ["FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT"]
    for index, name in enumerate(order):
        point = (index % 3 * 896 + 448, index // 3 * 448 + 224)
        assert picture.getpixel(point) == colours[f"CAM_{name}"]


def test_stitch_names_the_missing_camera():
    from PIL import Image

    with pytest.raises(ValueError, match=r"missing \['CAM_BACK'\]"):
        stitch({camera: Image.new("RGB", (16, 9)) for camera in LAYOUT if camera != "CAM_BACK"})
