"""The suite: names, needs, stamps, shared families; and pictures' distances."""

import math

import pytest
import torch

from trilemma.evaluate import DEFAULT, METRICS, Reading, Stamp, compare, frechet_estimates, measure, psnr, ssim


def reading(n, seed, classes=None, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(n, 4, generator=draw)
    return Reading(features, None if classes is None else 3 * torch.randn(n, classes, generator=draw))


def test_every_metric_gives_one_figure_with_an_interval_and_the_stamp():
    stamp = Stamp("pixels", "00", "digits", "11", "none", 0)
    samples, real, held_out = (reading(60, seed, 3) for seed in range(3))
    asked = torch.arange(60) % 3
    found = measure(samples, real, held_out=held_out, metrics=list(METRICS), stamp=stamp, seed=5, asked=asked)
    assert list(found) == list(METRICS)
    for name, estimate in found.items():
        assert estimate.metric == name
        assert estimate.low < estimate.high
        assert (estimate.stamp.n, estimate.stamp.seed) == (60, 5)
        assert METRICS[name].better.split()[0] in ("higher", "lower", "near")
        assert METRICS[name].says.endswith((".", "?"))
    fid, infinity = frechet_estimates(samples.features, real.features, seed=5)
    assert (found["fid"].value, found["fid_infinity"].value) == (fid.value, infinity.value)
    assert compare(found["fid"], found["fid"]).value == 0
    other = measure(reading(50, 3, 3), real, metrics=["fid"], stamp=stamp)
    with pytest.raises(ValueError, match=r"n \(60 against 50\)"):
        compare(found["fid"], other["fid"])


def test_what_is_not_given_is_left_out_or_asked_for():
    found = measure(reading(60, 0), reading(60, 1))
    needs = {name for name in DEFAULT if METRICS[name].needs}
    assert set(found) == set(DEFAULT) - needs
    assert needs == {"inception_score", "class_agreement", "nearer_than_held_out", "fld"}
    for name, need in (("inception_score", "logits"), ("fld", "held_out"), ("class_agreement", "asked")):
        samples = reading(60, 0, None if need == "logits" else 3)
        with pytest.raises(ValueError, match=f"{name} needs {need}"):
            measure(samples, reading(60, 1), metrics=[name])
    with pytest.raises(ValueError, match="no metric is called 'FID'"):
        measure(reading(60, 0), reading(60, 1), metrics=["FID"])


def test_the_same_seed_gives_the_same_and_a_copy_of_the_reference_is_seen():
    real = reading(80, 1)
    once, again = (measure(reading(80, 0), real, seed=3) for _ in range(2))
    assert once == again
    copy = measure(real, real, metrics=["fid", "precision", "recall", "coverage", "authenticity", "copied"])
    assert copy["fid"].value == pytest.approx(0, abs=1e-9)
    assert [copy[name].value for name in ("precision", "recall", "coverage", "copied")] == [1, 1, 1, 1]
    assert copy["authenticity"].value == 0


def test_bad_features_are_refused_in_one_sentence():
    real = reading(60, 1)
    broken = reading(60, 0)
    broken.features[3, 2] = math.nan
    for bad, match in [
        (broken, "1 of 60 samples have a NaN"),
        (reading(1, 0), "1 samples are too few"),
        (Reading(torch.randn(60, 3), None), "lengths 3 and 4"),
    ]:
        with pytest.raises(ValueError, match=match) as caught:
            measure(bad, real)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="held-out images"):
        measure(real, real, held_out=reading(1, 0))


def test_psnr_and_ssim_against_definitions():
    draw = torch.Generator().manual_seed(0)
    a = torch.rand(3, 2, 20, 17, generator=draw, dtype=torch.float64) * 2 - 1
    b = (a + 0.3 * torch.randn(a.shape, generator=draw)).clamp(-1, 1)
    exact = [10 * math.log10(4 / float((p - q).square().mean())) for p, q in zip(a, b)]
    assert psnr(a, b).tolist() == pytest.approx(exact)
    assert psnr(a, a).tolist() == [math.inf] * 3
    skimage = pytest.importorskip("scipy.ndimage")

    def local(z):  # another convolution: scipy's, whole picture, cut to where the window fits
        return skimage.gaussian_filter(z, 1.5, truncate=3.5, mode="constant")[5:-5, 5:-5]

    for pair, found in zip(zip(a, b), ssim(a, b).tolist()):
        values = []
        for p, q in zip(*(z.numpy() for z in pair)):
            mp, mq = local(p), local(q)
            vp, vq, cov = local(p * p) - mp * mp, local(q * q) - mq * mq, local(p * q) - mp * mq
            c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
            values.append(((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))).mean())
        assert found == pytest.approx(sum(values) / 2, rel=1e-9)
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="8 x 8 are too small"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="two equal shapes"):
        psnr(a, b[:1])
    with pytest.raises(ValueError, match="positive"):
        psnr(a, b, data_range=0.0)
