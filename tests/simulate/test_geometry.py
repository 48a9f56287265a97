import numpy as np
from scipy.ndimage import uniform_filter

from components.simulate.draws import Draws
from components.simulate.geometry import Arc, Pose, Texture, blur, dome, inside


def test_blur_is_three_uniform_filters():
    image = Draws(0).field(40, 30)
    expected = image
    for _ in range(3):
        expected = uniform_filter(expected, size=7, mode="nearest")
    np.testing.assert_allclose(blur(image, 3), expected, atol=1e-12)


def test_grid_without_a_pose_spans_the_image():
    grid = Pose().grid(6, 4)
    np.testing.assert_allclose(grid.x[0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(grid.y[:, 0], [-1.25, -0.75, -0.25, 0.25, 0.75, 1.25])


def test_pose_shifts_scales_and_rotates():
    pose = Pose(shift_x=0.1, shift_y=-0.2, scale=1.25, half_tilt=0.1)
    plain, posed = Pose().grid(50, 40), pose.grid(50, 40)
    angle = 2 * np.arctan(0.1)
    x, y = plain.x / 1.25 - 0.1, plain.y / 1.25 + 0.2
    np.testing.assert_allclose(posed.x, np.cos(angle) * x + np.sin(angle) * y, atol=1e-12)
    np.testing.assert_allclose(posed.y, np.cos(angle) * y - np.sin(angle) * x, atol=1e-12)


def test_inside_falls_smoothly_from_one_to_zero():
    values = inside(np.array([-1.0, -0.1, -0.05, 0.0, 0.05, 0.1, 1.0]), 0.1)
    np.testing.assert_allclose(values, [1, 1, 0.84375, 0.5, 0.15625, 0, 0], atol=1e-12)


def test_dome_is_a_half_sphere():
    np.testing.assert_allclose(dome(np.array([0.0, 0.6, 1.0, 2.0]), np.zeros(4)), [1, 0.8, 0, 0], atol=1e-12)


def test_arc_follows_its_parabola_within_its_width():
    arc = Arc(start=-0.5, end=0.5, offset=0.1, slope=0.4, curve=-0.8, half_width=0.05)
    s = np.linspace(0.1, 0.9, 9)
    middle = 0.1 + 0.4 * s - 0.8 * s**2
    normal = np.sqrt(1 + (0.4 - 1.6 * s) ** 2)
    np.testing.assert_allclose(arc.draw(s - 0.5, middle), 1)
    np.testing.assert_allclose(arc.draw(s - 0.5, middle + 0.05 * normal), 0.5, atol=1e-9)
    assert not arc.draw(s - 0.5, middle + 0.07 * normal).any()
    assert not arc.draw(np.array([-0.6, 0.6]), np.array([0.1, -0.3])).any()


def test_texture_stays_with_the_body():
    texture = Texture.draw(Draws(0), 0.11)
    shifted = Pose(shift_x=2 * 5 / 40).grid(30, 40)  # a shift of five pixels
    np.testing.assert_allclose(texture.at(shifted)[:, 5:], texture.at(Pose().grid(30, 40))[:, :-5], atol=1e-9)
    assert 0.1 < np.ptp(texture.at(shifted)) <= 1
