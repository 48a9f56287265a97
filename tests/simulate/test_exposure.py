import numpy as np

from components.simulate.draws import Draws
from components.simulate.exposure import Exposure, radiograph


def test_film_shows_the_logistic_of_log_exposure():
    attenuation = np.tile(np.linspace(0, 4, 200), (1, 1)).repeat(200, axis=0)
    plain = Exposure(scatter=0.0, noise=0.0, heel=0.0, midpoint=0.2)
    image = radiograph(attenuation, plain, Draws(0))
    expected = 1 / (1 + (np.exp(-attenuation) / 0.2) ** 1.5)
    np.testing.assert_allclose(image[5, 5:-5], expected[5, 5:-5], atol=0.005)  # (1 - a/256)^256 is within 3 % of exp(-a)


def test_scatter_lowers_contrast_and_noise_is_random():
    attenuation = np.full((64, 64), 1.0)
    attenuation[:, 28:36] = 3.0
    clear = radiograph(attenuation, Exposure(0.0, 0.0, 0.0, 0.2), Draws(0))
    hazy = radiograph(attenuation, Exposure(0.4, 0.0, 0.0, 0.2), Draws(0))
    assert np.ptp(hazy) < 0.9 * np.ptp(clear)
    noisy = Exposure(0.0, 0.02, 0.0, 0.2)
    residual = radiograph(attenuation, noisy, Draws(0)) - clear
    assert residual.std() > 0.002
    assert not np.array_equal(residual, radiograph(attenuation, noisy, Draws(1)) - clear)
