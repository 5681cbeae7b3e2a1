"""Classification with a few large classes and many small ones: losses, a small network, curvature class by class."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from pwgf_jax.arguments import check_key
from pwgf_jax.krylov import smallest_eigenpair
from pwgf_jax.problems.base import CriticalPoint, Problem

__all__ = [
    "ClassExtremes",
    "class_balanced_weights",
    "class_extremes",
    "cross_entropy",
    "imbalanced_classification",
    "ldam",
    "long_tailed",
    "predict",
    "vector_scaling",
]

Loss = Callable[[Array, Array, Array], Array]


def _counted(name: str, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels on the host, and how many examples each class 0, 1, … has; every class must have some."""
    found = np.asarray(labels)
    if found.ndim != 1 or found.size == 0 or not np.issubdtype(found.dtype, np.integer) or found.min() < 0:
        raise ValueError(f"{name}: labels are {found.dtype} {found.shape}; give integers (n,), n >= 1, from 0 upwards.")
    counts = np.bincount(found)
    if counts.min() == 0 or counts.size < 2:
        raise ValueError(
            f"{name}: the classes have {counts.tolist()} examples; "
            "number them 0, 1, ... without gaps, and give two at least."
        )
    return found, counts


def cross_entropy(logits: Float[Array, "b C"], labels: Int[Array, " b"], counts: ArrayLike) -> Float[Array, " b"]:
    r"""Cross-entropy, :math:`-\log\mathrm{softmax}_y(z)`: optax's, called as the other losses are.

    Args:
        logits: z.
        labels: y, classes from 0 to C − 1.
        counts: examples of each class, shape (C,); cross-entropy treats them alike.

    Returns:
        The loss of each example.

    Example:
        >>> import jax.numpy as jnp
        >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2]), jnp.array([9, 3, 2, 1])).round(4).tolist()
        [1.3863]
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def ldam(
    logits: Float[Array, "b C"],
    labels: Int[Array, " b"],
    counts: ArrayLike,
    *,
    largest_margin: float = 0.5,
    scale: float = 30.0,
) -> Float[Array, " b"]:
    r"""Label-distribution-aware margins: the true class must win by a margin, larger for a smaller class.

    :math:`-\log\frac{e^{s(z_y-m_y)}}{e^{s(z_y-m_y)}+\sum_{j\ne y}e^{sz_j}}` with :math:`m_c\propto n_c^{-1/4}`, the
    largest of them ``largest_margin``. s = 30 is for logits that are cosines, as in the paper's networks; logits of
    no fixed size, such as those of :func:`predict`, carry a scale of their own, and s near one does.

    Args:
        logits: z.
        labels: y, classes from 0 to C − 1.
        counts: n, examples of each class, shape (C,).
        largest_margin: of the smallest class.
        scale: s.

    Returns:
        The loss of each example.

    Example:
        >>> import jax.numpy as jnp
        >>> z, counts = jnp.zeros((2, 2)), jnp.array([16, 1])  # margins 1/4 and 1/2
        >>> ldam(z, jnp.array([0, 1]), counts, scale=1.0).round(3).tolist()  # log(1 + exp(margin))
        [0.826, 0.974]

    References:
        Cao, Wei, Gaidon, Arechiga, Ma, NeurIPS 2019, arXiv:1906.07413, Sec. 3; s is in the authors' code.
    """
    margins = jnp.asarray(counts, logits.dtype) ** -0.25
    margins = largest_margin * margins / jnp.max(margins)
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return cross_entropy(scale * (logits - own * margins[None, :]), labels, counts)


def vector_scaling(
    logits: Float[Array, "b C"],
    labels: Int[Array, " b"],
    counts: ArrayLike,
    *,
    gamma: float = 0.3,
    tau: float = 1.0,
) -> Float[Array, " b"]:
    r"""Vector scaling (VS): cross-entropy of the logits :math:`\Delta_cz_c+\iota_c`.

    :math:`\Delta_c=(n_c/n_{\max})^\gamma`, :math:`\iota_c=\tau\log(n_c/n)`. Both are smaller for a smaller class, which
    therefore must reach larger logits to be predicted: Δ moves the margins at the end of training, ι speeds up
    its start. γ = 0 is logit adjustment, γ = τ = 0 cross-entropy.

    Args:
        logits: z.
        labels: y, classes from 0 to C − 1.
        counts: n, examples of each class, shape (C,).
        gamma: γ ≥ 0.
        tau: τ ≥ 0.

    Returns:
        The loss of each example.

    Example:
        >>> import jax.numpy as jnp
        >>> z = jnp.zeros((2, 2))  # the softmax of ι is the class frequency
        >>> jnp.exp(-vector_scaling(z, jnp.array([0, 1]), jnp.array([9, 1]))).round(4).tolist()
        [0.9, 0.1]

    References:
        Kini, Paraskevas, Oymak, Thrampoulidis, NeurIPS 2021, arXiv:2103.01550: the loss with γ and τ of its
        deep-net experiments, without the class weights ω.
    """
    factor, offset = _vector_scale(jnp.asarray(counts, logits.dtype), gamma, tau)
    return cross_entropy(factor[None, :] * logits + offset[None, :], labels, counts)


def _vector_scale(counts: Any, gamma: float, tau: float) -> tuple[Any, Any]:
    """(Δ, ι), of NumPy or JAX counts."""
    log = np.log if isinstance(counts, np.ndarray) else jnp.log
    return (counts / counts.max()) ** gamma, tau * log(counts / counts.sum())


def class_balanced_weights(counts: ArrayLike, beta: float) -> np.ndarray:
    r"""Weights by effective numbers of examples, :math:`w_c\propto(1-\beta)/(1-\beta^{n_c})`.

    β = 0 weighs examples alike; β → 1 weighs classes alike, :math:`w_c\to n/(Cn_c)`. Normalised to mean one over
    *examples*, :math:`\sum_cn_cw_c=n`: then the mean of the weighted losses is a weighted average of them, of the same
    size at every β, and step sizes (and SAM's radius) keep their meaning. The paper normalises to mean one
    over classes; a weighted mean, as training code takes it, divides that factor out again.

    Args:
        counts: n, examples of each class, shape (C,), one each at least.
        beta: β, 0 ≤ β < 1; 0.9999 in the experiments.

    Returns:
        w, shape (C,), float64.

    Raises:
        ValueError: if β is outside [0, 1), or a class is empty.

    Example:
        >>> import numpy as np
        >>> class_balanced_weights(np.array([90, 10]), 0.0).tolist()
        [1.0, 1.0]
        >>> class_balanced_weights(np.array([90, 10]), 1 - 1e-9).round(3).tolist()
        [0.556, 5.0]

    References:
        Cui, Jia, Lin, Song, Belongie, CVPR 2019, arXiv:1901.05555, Sec. 4.
    """
    n = np.asarray(counts, float)
    if n.ndim != 1 or n.size == 0 or n.min() < 1:
        raise ValueError(f"class_balanced_weights: counts={n.tolist()}; give one number >= 1 for each class.")
    if not 0 <= beta < 1:
        raise ValueError(f"class_balanced_weights: beta={beta}; choose 0 <= beta < 1.")
    effective = -np.expm1(n * (math.log(beta) if beta > 0 else -math.inf)) / (1 - beta)
    return n.sum() / (n / effective).sum() / effective


def long_tailed(labels: ArrayLike, imbalance: float, key: Array) -> np.ndarray:
    r"""Which examples to keep for a long-tailed training set: class c keeps :math:`n_{\max}\,\mathrm{IF}^{c/(C-1)}`.

    Rounded down; n_max is the largest number for which every class has enough, so that the profile is exact
    (their common size where classes are equal). Which examples of a class stay depends on the key, and not on IF: of
    two values, the one that keeps fewer of a class keeps a subset.

    Args:
        labels: of all examples, shape (n,), classes 0, …, C − 1.
        imbalance: IF, smallest class over largest, 0 < IF ≤ 1; 0.01 is usual.
        key: typed random key.

    Returns:
        Indices of the examples kept, ascending.

    Raises:
        ValueError: if IF is outside (0, 1], a class has no example, or one would keep none.
        TypeError: if ``key`` is not a typed key.

    Example:
        >>> import jax, numpy as np
        >>> labels = np.repeat(np.arange(3), 100)
        >>> kept = long_tailed(labels, 0.01, jax.random.key(0))
        >>> np.bincount(labels[kept]).tolist()
        [100, 10, 1]

    References:
        The exponential profile of Cui et al., arXiv:1901.05555, as in Cao et al., arXiv:1906.07413, Sec. 4.
    """
    check_key(key, "long_tailed")
    found, counts = _counted("long_tailed", labels)
    if not 0 < imbalance <= 1:
        raise ValueError(f"long_tailed: imbalance={imbalance}; choose 0 < imbalance <= 1.")
    profile = imbalance ** (np.arange(counts.size) / (counts.size - 1))
    up = 1 + 1e-12  # a whole number that rounding has put just below itself stays whole
    largest = np.floor((counts / profile).min() * up)
    keep = np.floor(largest * profile * up).astype(int)
    if keep.min() == 0:
        raise ValueError(
            f"long_tailed: imbalance={imbalance} leaves classes of {keep.tolist()} examples; "
            "choose a larger one, or give more examples."
        )
    order = np.asarray(jax.random.permutation(key, found.size))
    return np.sort(np.concatenate([order[found[order] == c][: keep[c]] for c in range(counts.size)]))


def predict(params: PyTree, inputs: Float[Array, "n d"]) -> Float[Array, "n C"]:
    """Logits of a tanh network: every layer but the last is followed by tanh.

    Args:
        params: the layers in order, each {"w": (in, out), "b": (out,)}.
        inputs: examples.

    Returns:
        Logits.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = {"w": jnp.eye(2), "b": jnp.ones(2)}
        >>> predict((layer, layer), jnp.zeros((1, 2))).round(4).tolist()
        [[1.7616, 1.7616]]
    """
    *hidden, last = params
    for layer in hidden:
        inputs = jnp.tanh(inputs @ layer["w"] + layer["b"][None, :])
    return inputs @ last["w"] + last["b"][None, :]


def imbalanced_classification(
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    hidden: int | tuple[int, ...],
    loss: Literal["cross_entropy", "ldam", "vs"] | Loss = "cross_entropy",
    beta: float = 0.0,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> Problem:
    r"""A small tanh network trained to classify, its loss aware of class sizes or not.

    :math:`f(\theta)=\frac1n\sum_iw_{y_i}\ell(z_\theta(x_i),y_i)`, with z from :func:`predict`, w from
    :func:`class_balanced_weights`, and ℓ one of the losses above.

    **The dead network** is critical for cross-entropy and VS: all weights and hidden biases zero, output bias
    :math:`b_c=(\log\pi_c-\iota_c)/\Delta_c` with the weighted frequencies :math:`\pi_c=n_cw_c/n` (Δ = 1, ι = 0
    for cross-entropy). Nothing passes the zero layers, and softmax = π has no gradient in b; f is the entropy of π.
    With one hidden layer of h units, :math:`\bar x_c` the mean of class c, :math:`\bar x=\sum\pi_c\bar x_c`, and

    .. math:: M_{c\cdot}=\Delta_c\pi_c(\bar x_c-\bar x)^\top,

    the second-order term is :math:`-\sum_kv_k^\top Mu_k` over units with weights :math:`u_k` in and :math:`v_k` out
    (hidden biases drop out, because the residuals sum to zero), plus that of b. The spectrum is therefore ±σ_j(M),
    each h times, that of :math:`\Delta(\mathrm{diag}\,\pi-\pi\pi^\top)\Delta`, and zeros: a strict saddle unless
    all class means agree, in which a class pulls by its frequency π_c. With two hidden layers the weights
    enter at third order only: a saddle whose Hessian is positive semi-definite. LDAM's bias has no closed form.

    No minimum is listed: where the network can separate the classes, the infimum 0 is not attained.

    Args:
        inputs: examples, shape (n, d).
        labels: their classes, shape (n,), 0, …, C − 1, each with one example at least.
        hidden: width of the hidden layer, or of both.
        loss: ``"cross_entropy"``, ``"ldam"`` or ``"vs"`` with the papers' constants, or a function
            (logits, labels, counts) -> losses, such as ``functools.partial(ldam, scale=1.0)``.
        beta: of the class-balanced weights; 0 for none.
        scale: factor on the Glorot weights of the start; below one it is nearer to the dead network.
        dtype: of the parameters and the inputs.

    Returns:
        The problem, a finite sum over the examples, in parameters for :func:`predict`; its minimum is None, and its
        saddle is listed for ``"cross_entropy"`` and ``"vs"``.

    Raises:
        ValueError: if inputs and labels disagree, a class is empty, or an option is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[1.0], [1.0], [1.0], [-1.0]]), jnp.array([0, 0, 0, 1])
        >>> problem = imbalanced_classification(x, y, hidden=2)
        >>> dead = problem.saddles[0]
        >>> problem.size, dead.name, round(dead.curvature, 4), round(float(problem.value(dead.point)), 4)
        (4, 'dead', -0.5303, 0.5623)

    References:
        Rangwani, Aithal, Mishra, Babu, NeurIPS 2022, arXiv:2212.13827, the experiments in small; the dead network is
        derived here and in the tests.
    """
    y, counts = _counted("imbalanced_classification", labels)
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    if jnp.ndim(inputs) != 2 or jnp.shape(inputs)[0] != y.size:
        raise ValueError(
            f"imbalanced_classification: inputs {jnp.shape(inputs)}, labels {y.shape}; give (n, d) and (n,)."
        )
    if not 1 <= len(widths) <= 2 or min(widths) < 1:
        raise ValueError(f"imbalanced_classification: hidden={hidden}; give one or two widths >= 1.")
    named: dict[Any, Loss] = {"cross_entropy": cross_entropy, "ldam": ldam, "vs": vector_scaling}
    if not callable(loss) and loss not in named:
        raise ValueError(
            f'imbalanced_classification: loss={loss!r}; choose "cross_entropy", "ldam", "vs" or a function.'
        )
    of_example = loss if callable(loss) else named[loss]
    shares = class_balanced_weights(counts, beta)
    x = jnp.asarray(inputs, dtype)
    targets, weights, sizes = jnp.asarray(y, jnp.int32), jnp.asarray(shares, dtype), jnp.asarray(counts, dtype)
    edges = (x.shape[1], *widths, counts.size)

    def weighted(params: PyTree, x: Array, y: Array) -> Array:
        return weights[y] * of_example(predict(params, x), y, sizes)

    def components(params: PyTree, indices: Array) -> Float[Array, " b"]:
        return weighted(params, x[indices], targets[indices])

    def value(params: PyTree) -> Float[Array, ""]:
        return jnp.mean(weighted(params, x, targets))

    def layers(make: Callable[[int, int, int], Array]) -> PyTree:
        shapes = list(itertools.pairwise(edges))
        return tuple({"w": make(i, *shape), "b": jnp.zeros(shape[1], dtype)} for i, shape in enumerate(shapes))

    def init(key: Array) -> PyTree:
        keys, glorot = jax.random.split(key, len(edges) - 1), jax.nn.initializers.glorot_uniform()
        return layers(lambda i, rows, columns: scale * glorot(keys[i], (rows, columns), dtype))

    saddles = ()
    if loss in ("cross_entropy", "vs"):
        n = counts.astype(float)
        factor, offset = _vector_scale(n, 0.3, 1.0) if loss == "vs" else (np.ones_like(n), np.zeros_like(n))
        *zero, last = layers(lambda i, rows, columns: jnp.zeros((rows, columns), dtype))
        share = n * shares / n.sum()
        point = (*zero, {"w": last["w"], "b": jnp.asarray((np.log(share) - offset) / factor, dtype)})
        spectrum = _dead_spectrum(np.asarray(inputs, float), y, share, factor, widths)
        entropy = -float(np.sum(share * np.log(share)))
        saddles = (CriticalPoint("dead", point, entropy, float(spectrum[0]), spectrum),)
    return Problem(value, init, saddles, None, (), components, y.size)


def _dead_spectrum(
    x: np.ndarray, y: np.ndarray, share: np.ndarray, factor: np.ndarray, widths: tuple[int, ...]
) -> np.ndarray:
    """The Hessian's eigenvalues at the dead network, ascending."""
    edges = (x.shape[1], *widths, share.size)
    size = sum((rows + 1) * columns for rows, columns in itertools.pairwise(edges))
    means = np.stack([x[y == c].mean(axis=0) for c in range(share.size)])
    pull = (factor * share)[:, None] * (means - share @ means)
    bias = factor[:, None] * (np.diag(share) - np.outer(share, share)) * factor
    sigma = np.linalg.svd(pull, compute_uv=False) if len(widths) == 1 else np.zeros(0)
    known = [np.repeat(sigma, widths[0]), np.repeat(-sigma, widths[0]), np.maximum(np.linalg.eigvalsh(bias), 0)]
    return np.sort(np.pad(np.concatenate(known), (0, size - sum(each.size for each in known))))


class ClassExtremes(NamedTuple):
    """The ends of the Hessian's spectrum, class by class.

    Args:
        smallest: the smallest eigenvalue of each class, shape (C,).
        largest: the largest, shape (C,).
        residual: error bounds of the two, shape (C, 2): an eigenvalue lies within ``residual`` of the one returned.
        converged: whether both residuals of a class are below the tolerance asked for, shape (C,).
    """

    smallest: Float[Array, " C"]
    largest: Float[Array, " C"]
    residual: Float[Array, "C 2"]
    converged: Bool[Array, " C"]


def class_extremes(
    value_of_class: Callable[[PyTree, Array], Array],
    params: PyTree,
    classes: int,
    key: Array,
    *,
    depth: int = 32,
    rtol: float = 1e-2,
) -> ClassExtremes:
    r"""Smallest and largest eigenvalue of the Hessian of each class' own mean loss, by Lanczos on H and −H.

    The mean over all classes may be at a minimum while a small class, which weighs little in it, still sees a
    saddle: its smallest eigenvalue stays negative. Classes are taken one after the other, in
    2·(depth + 1) Hessian-vector products each.

    Args:
        value_of_class: (parameters, class as an int32 scalar) -> the mean loss of that class. With a problem of
            :func:`imbalanced_classification` and its labels:
            ``lambda p, c: jnp.mean(problem.components(p, everyone), where=labels == c)``.
        params: where.
        classes: C, how many there are.
        key: typed random key, for the starts of Lanczos.
        depth: Krylov dimension, capped by the number of parameters.
        rtol: as in :func:`pwgf_jax.smallest_eigenpair`.

    Returns:
        A :class:`ClassExtremes`.

    Raises:
        ValueError: if there is no class, or ``depth`` is below one.
        TypeError: if ``key`` is not a typed key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> curvatures = jnp.array([[2.0, 1.0], [3.0, -1.0]])
        >>> def value_of_class(params, c):
        ...     return jnp.sum(curvatures[c] * params**2) / 2
        >>> found = class_extremes(value_of_class, jnp.ones(2), 2, jax.random.key(0))
        >>> found.smallest.round(4).tolist(), found.largest.round(4).tolist()
        ([1.0, -1.0], [2.0, 3.0])

    References:
        Rangwani, Aithal, Mishra, Babu, NeurIPS 2022, arXiv:2212.13827, the class-wise spectra.
    """
    check_key(key, "class_extremes")
    if classes < 1:
        raise ValueError(f"class_extremes: classes={classes}; give one at least.")

    def extremes(c: Array) -> ClassExtremes:
        def grad(params: PyTree) -> PyTree:
            return jax.grad(value_of_class)(params, c)

        with jax.default_matmul_precision("highest"):  # Lanczos needs it of its products, which are traced here
            H = jax.linearize(grad, params)[1]
        start = jax.random.fold_in(key, c)

        def end(largest: Array) -> tuple[Array, Array, Array]:
            def operator(v: PyTree) -> PyTree:
                return jax.tree.map(lambda leaf: jnp.where(largest, -leaf, leaf), H(v))

            pair = smallest_eigenpair(operator, start, depth, params, rtol=rtol)
            return pair.eigenvalue, pair.residual, pair.converged

        values, residual, converged = jax.vmap(end)(jnp.array([False, True]))  # both ends at once: one compilation
        return ClassExtremes(values[0], -values[1], residual, jnp.all(converged))

    return jax.lax.map(extremes, jnp.arange(classes, dtype=jnp.int32))
