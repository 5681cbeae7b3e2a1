"""Spectra of one network on one data set, beside those of the peers that are installed: time and memory."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwgf_jax import certify, extreme_eigenpairs, spectral_density
from pwgf_jax.empirical import hessian, prepared, value_and_gradient

KEY = jax.random.key(0)
WIDE = (64, 784, 1024, 128, 10)  # a million parameters
BATCHES, BATCH, DEPTH = 4, 128, 16


def network(sizes=WIDE):
    """Weights of a tanh network as NumPy arrays, and its data, for any library."""
    draw = np.random.default_rng(0)
    weights = [(draw.normal(size=(n, m)) / np.sqrt(n)).astype(np.float32) for n, m in pairwise(sizes)]
    inputs = draw.normal(size=(BATCHES, BATCH, sizes[0])).astype(np.float32)
    targets = draw.normal(size=(BATCHES, BATCH, sizes[-1])).astype(np.float32)
    return weights, inputs, targets


def loss(weights, batch):
    x, y = batch
    for w in weights[:-1]:
        x = jnp.tanh(x @ w)
    return jnp.mean((x @ weights[-1] - y) ** 2)


def test_a_certificate_and_a_spectrum_in_gradients(side_by_side, report):
    weights, inputs, targets = network()
    weights, data = [jnp.asarray(w) for w in weights], (jnp.asarray(inputs), jnp.asarray(targets))
    count = sum(w.size for w in weights)
    F, point, _ = prepared(loss, weights, "benchmark", batches=data)
    gradient, product = jax.jit(value_and_gradient), jax.jit(lambda F, w, v: hessian(F, w)(v))
    options: dict[str, Any] = {"batches": data}
    calls = {
        "gradient": partial(gradient, F, point),
        "product": partial(product, F, point, weights),
        "certificate": lambda: certify(loss, weights, 1e3, 1e-2, KEY, **options).full.direction,
        "density": lambda: spectral_density(loss, weights, KEY, depth=DEPTH, probes=1, **options).nodes,
        "pairs": lambda: extreme_eigenpairs(loss, weights, KEY, 1, rtol=0.05, **options).eigenvalues,
    }
    begin = time.perf_counter()
    found = certify(loss, weights, 1e3, 1e-2, KEY, **options)
    report(f"{count} parameters, {BATCHES} batches: first certificate {time.perf_counter() - begin:.1f} s, compiled")
    seconds = side_by_side(calls, rounds=3)
    for name, value in seconds.items():
        report(f"{name}: {1e3 * value:.0f} ms = {value / seconds['gradient']:.1f} gradients")
    report(f"{found.verdict.name} by {found.full.products} products")
    for name, function, arguments in (("gradient", gradient, (F, point)), ("product", product, (F, point, weights))):
        used = function.lower(*arguments).compile().memory_analysis()
        assert used is not None
        report(f"temporary memory of a {name}: {used.temp_size_in_bytes / (4 * count):.1f} times the parameters")


def torch_network():
    torch = pytest.importorskip("torch")
    weights, inputs, targets = network()
    layers = []
    for w in weights:
        layer = torch.nn.Linear(*w.shape, bias=False)
        layer.weight.data = torch.tensor(w.T.copy())
        layers += [layer, torch.nn.Tanh()]
    data = [(torch.tensor(x), torch.tensor(y)) for x, y in zip(inputs, targets, strict=True)]
    return torch.nn.Sequential(*layers[:-1]), torch.nn.MSELoss(), data


def test_products_beside_curvlinops(side_by_side, report):
    curvlinops, torch = pytest.importorskip("curvlinops"), pytest.importorskip("torch")
    model, criterion, data = torch_network()
    parameters = [p for p in model.parameters() if p.requires_grad]
    operator = curvlinops.HessianLinearOperator(model, criterion, parameters, data, check_deterministic=False)
    weights, inputs, targets = network()
    F, point, _ = prepared(loss, [jnp.asarray(w) for w in weights], "benchmark", batches=(inputs, targets))
    v = np.random.default_rng(1).normal(size=operator.shape[0]).astype(np.float32)
    ends = np.cumsum([w.size for w in weights])[:-1]
    ours = [jnp.asarray(part.reshape(w.shape[::-1]).T) for part, w in zip(np.split(v, ends), weights, strict=True)]
    product, theirs = jax.jit(lambda F, w, v: hessian(F, w)(v)), torch.tensor(v)
    images = [np.asarray(leaf).T.ravel() for leaf in product(F, point, ours)]
    there = np.asarray((operator @ theirs).detach())
    np.testing.assert_allclose(np.concatenate(images), there, rtol=1e-3, atol=1e-4 * np.abs(there).max())
    seconds = side_by_side({"ours": partial(product, F, point, ours), "curvlinops": lambda: operator @ theirs}, 9)
    report(f"product: curvlinops / ours = {seconds['curvlinops'] / seconds['ours']:.2f} in time")


def test_extreme_pairs_beside_hessian_eigenthings(report):
    pytest.importorskip("hessian_eigenthings")
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.loss_fns import supervised_loss
    from hessian_eigenthings.operators import HessianOperator

    model, criterion, data = torch_network()
    operator = HessianOperator(model=model, dataloader=data, loss_fn=supervised_loss(criterion))
    begin = time.perf_counter()
    theirs = lanczos(operator, k=1, which="LA", max_iter=64, tol=1e-2)
    there = time.perf_counter() - begin
    weights, inputs, targets = network()
    find = partial(
        extreme_eigenpairs, loss, [jnp.asarray(w) for w in weights], KEY, 1, rtol=1e-2, batches=(inputs, targets)
    )
    find()  # compiles
    begin = time.perf_counter()
    ours = find()
    here = time.perf_counter() - begin
    largest = float(ours.eigenvalues[-1])
    report(
        f"largest eigenvalue {largest:.4f} ± {float(ours.residuals[-1]):.1e}, theirs {float(theirs.eigenvalues[0]):.4f}"
    )
    report(f"theirs / ours = {there / here:.2f} in time; ours has the smallest, and a search for copies, besides")
