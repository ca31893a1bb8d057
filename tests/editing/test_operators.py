"""Linear operators against their own algebra, dense matrices and scipy."""

import inspect

import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from ldm.editing import operators
from ldm.editing.operators import Blur, Downscale, Masked, Projections

SHAPE = (3, 12, 16)
OPERATORS = {
    "hidden pixels": Masked.random(12, 16, 0.4, seed=0),
    "downscale by 4": Downscale(4),
    "downscale by 1": Downscale(1),
    "blur, reflect": Blur(1.5, (12, 16)),
    "blur, circular": Blur(1.5, (12, 16), padding="circular"),
    "projections": Projections(SHAPE, 100),
    "all projections": Projections(SHAPE, 3 * 12 * 16),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


def images(count=2):
    return torch.randn(count, *SHAPE, dtype=torch.float64)


def test_every_operator_of_the_module_is_tested():
    classes = {c for _, c in inspect.getmembers(operators, inspect.isclass) if c.__module__ == operators.__name__}
    assert classes - {operators.Operator} == {type(operator) for operator in OPERATORS.values()}


@every_operator
def test_the_transpose_is_the_adjoint(name):
    operator, x = OPERATORS[name], images()
    y = torch.randn_like(operator.apply(x))
    assert operator.transpose(y).shape == x.shape
    torch.testing.assert_close((operator.apply(x) * y).sum(), (x * operator.transpose(y)).sum())


@every_operator
def test_the_pseudo_inverse_is_moore_and_penroses(name):
    operator, x, w = OPERATORS[name], images(), images()
    y, z = operator.apply(x), torch.randn_like(operator.apply(x))
    back, forth = operator.pseudo_inverse, operator.apply
    torch.testing.assert_close(forth(back(y)), y, atol=1e-10, rtol=1e-8)  # A A^+ A = A
    torch.testing.assert_close(back(forth(back(z))), back(z), atol=1e-8, rtol=1e-8)  # A^+ A A^+ = A^+
    torch.testing.assert_close((forth(back(z)) * y).sum(), (z * forth(back(y))).sum())  # A A^+ is symmetric
    torch.testing.assert_close((back(forth(x)) * w).sum(), (x * back(forth(w))).sum())  # and A^+ A


@every_operator
def test_an_operator_follows_the_dtype_and_leaves_its_argument_alone(name):
    operator, x = OPERATORS[name], images().float()
    before = x.clone()
    assert operator.apply(x).dtype == operator.pseudo_inverse(operator.apply(x)).dtype == torch.float32
    assert torch.equal(x, before)


@pytest.mark.parametrize(("padding", "theirs"), [("reflect", "mirror"), ("circular", "wrap")])
def test_the_blur_is_that_of_scipy(padding, theirs):
    x = images(1)
    expected = x.numpy()
    for axis in (2, 3):  # scipy calls reflect what repeats the edge; ours, like torch, does not
        expected = gaussian_filter1d(expected, 1.2, axis=axis, mode=theirs, radius=4)
    got = Blur(1.2, (12, 16), padding=padding, cutoff=0.0).apply(x)
    torch.testing.assert_close(got, torch.from_numpy(expected))


@pytest.mark.parametrize("cutoff", [0.1, 0.01])
def test_sharpening_makes_no_more_of_an_error_than_the_cutoff_allows(cutoff):
    operator, error = Blur(3.0, (12, 16), cutoff=cutoff), torch.eye(192, dtype=torch.float64).view(192, 1, 12, 16)
    worst = torch.linalg.matrix_norm(operator.pseudo_inverse(error).flatten(1), ord=2)
    greatest = torch.linalg.matrix_norm(operator.apply(error).flatten(1), ord=2)
    assert 0.1 / cutoff < worst * greatest <= 1 / cutoff + 1e-9


def test_projections_are_orthonormal_and_a_function_of_the_seed():
    operator, y = Projections(SHAPE, 100, seed=1), torch.randn(2, 100, dtype=torch.float64)
    torch.testing.assert_close(operator.apply(operator.transpose(y)), y)
    x = images()
    assert torch.equal(operator.apply(x), Projections(SHAPE, 100, seed=1).apply(x))
    assert not torch.allclose(operator.apply(x), Projections(SHAPE, 100, seed=2).apply(x))


def test_a_random_mask_hides_the_share_that_was_asked_for():
    operator = Masked.random(10, 20, 0.3, seed=0)
    assert operator.mask.shape == (1, 1, 10, 20)
    assert operator.mask.sum() == 60
    assert torch.equal(operator.apply(torch.ones(1, 1, 10, 20)), 1 - operator.mask)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(0.0, (8, 8)), "std 0.0"),
        (lambda: Blur(3.0, (8, 8)), "std 3.0"),
        (lambda: Blur(float("inf"), (8, 8)), "std inf"),
        (lambda: Blur(float("nan"), (8, 8)), "std nan"),
        (lambda: Blur(1.0, (8, 8), padding="zeros"), "padding 'zeros'"),
        (lambda: Projections((1, 2, 2), 5), "count 5"),
        (lambda: Projections((1, 2, 2), 0), "count 0"),
        (lambda: Downscale(5).apply(images()), "size 12x16"),
        (lambda: Downscale(0), "factor 0"),
    ],
)
def test_what_an_operator_cannot_do_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("std", "side"), [(1.5, 4), (5.0, 6), (22.0, 64)])
def test_a_blur_that_is_too_wide_names_one_that_is_not(std, side):
    with pytest.raises(ValueError, match=r"try std=") as caught:
        Blur(std, (side, side))
    named = float(str(caught.value).rpartition("=")[2])
    assert 0 < named < std and Blur(named, (side, side)).gains.shape == (side, side)
