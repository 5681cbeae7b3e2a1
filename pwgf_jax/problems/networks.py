"""Students with too few neurons for their teacher, and one attention head: critical points in closed form."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from pwgf_jax.arguments import check_key
from pwgf_jax.problems.base import CriticalPoint, OnDemand, Problem, numbers

__all__ = ["attention_pca", "copy_average", "spiked_wishart_prompts"]


def _partition_counts(total: int, parts: int) -> list[list[int]]:
    """At [p][t], how many ways there are to write t as a sum of p positive integers, their order aside."""
    ways = [[1] + [0] * total]
    for p in range(1, parts + 1):
        row = [0] * (total + 1)
        for t in range(p, total + 1):
            row[t] = ways[p - 1][t - 1] + row[t - p]
        ways.append(row)
    return ways


def _partition(index: int, total: int, parts: int, ways: list[list[int]]) -> tuple[int, ...]:
    """Those ways, each ascending, and in lexicographic order: that of an index."""
    found, first = [], 1
    for left in range(parts - 1, 0, -1):
        # The other parts are at least as large as this one: as many as there are with it taken off, less one, from all.
        while (starting := ways[left][total - first - left * (first - 1)]) <= index:
            index, first = index - starting, first + 1
        found.append(first)
        total -= first
    return (*found, total)


def _erf_overlap(w: Float[Array, "n d"], v: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """E σ(w·x)σ(v·x) for σ(z) = erf(z/√2)."""
    lengths = jnp.sqrt((1 + jnp.sum(w**2, axis=1))[:, None] * (1 + jnp.sum(v**2, axis=1))[None, :])
    return 2 / jnp.pi * jnp.arcsin((w @ v.T) / lengths)


@jax.custom_jvp
def _arc(u: Array) -> Array:
    """The arc-cosine kernel of order one, h(u) = (√(1 − u²) + (π − arccos u) u)/(2π)."""
    u = jnp.clip(u, -1, 1)
    return (jnp.sqrt(1 - u**2) + (jnp.pi - jnp.arccos(u)) * u) / (2 * jnp.pi)


@_arc.defjvp
def _(primals, tangents):
    # The singular terms of autodiff cancel: h' = (π − arccos u)/(2π), finite at u = ±1.
    (u,), (du,) = primals, tangents
    return _arc(u), (jnp.pi - jnp.arccos(jnp.clip(u, -1, 1))) / (2 * jnp.pi) * du


def _relu_overlap(w: Float[Array, "n d"], v: Float[Array, "m d"]) -> Float[Array, "n m"]:
    lengths = jnp.linalg.norm(w, axis=1)[:, None] * jnp.linalg.norm(v, axis=1)[None, :]
    return lengths * _arc((w @ v.T) / lengths)


def _relu_self(w: Float[Array, "n d"]) -> Float[Array, "n n"]:
    same = jnp.eye(w.shape[0], dtype=bool)
    lengths = jnp.linalg.norm(w, axis=1)
    cosine = jnp.where(same, 0, (w @ w.T) / (lengths[:, None] * lengths[None, :]))
    return jnp.where(same, (lengths**2 / 2)[:, None], lengths[:, None] * lengths[None, :] * _arc(cosine))


def copy_average(
    teachers: int,
    students: int,
    *,
    dimension: int | None = None,
    activation: Literal["erf", "relu"] = "erf",
    dtype: Any = jnp.float32,
) -> Problem:
    r"""A student network of n neurons for a teacher of k > n orthonormal ones, on Gaussian inputs, in closed form.

    :math:`L(a,W)=a^\top K(W,W)a-2a^\top K(W,V)1+1^\top K(V,V)1` with
    :math:`K(w,v)=\mathbb E\,\sigma(w\cdot x)\sigma(v\cdot x)`.
    For :math:`\sigma(z)=\mathrm{erf}(z/\sqrt2)` every partition :math:`k=k_1+\dots+k_n` gives a critical point, the
    copy-average configuration :math:`w_i=(k_i(2k_i-1))^{-1/2}\sum_{j\in\text{group }i}v_j`, :math:`a_i=k_i` with
    :math:`L=\sum_iL^*(k_i)`, :math:`L^*(k)=\frac2\pi(k\arcsin\frac12-k^2\arcsin\frac1{2k})`. The partition
    (1, …, 1, k − n + 1) is the best of them and a local minimum; the others are strict saddles, which
    is verified here for k ≤ 5. For ReLU the closed form is known for one student; with more no point is listed.

    Args:
        teachers: k.
        students: n, 1 ≤ n < k.
        dimension: of the inputs, at least k, which is the default.
        activation: ``"erf"`` or ``"relu"``.
        dtype: of the parameters.

    Returns:
        The problem in {"a": (n,), "w": (n, dimension)}; starts are Gaussian, of variance 1/dimension for w. Its
        ``minimum`` is the best copy-average point: that no network is better is not known. It is None for several
        ReLU students.

    Raises:
        ValueError: if the numbers do not fit together, or the activation is unknown.

    Example:
        >>> problem = copy_average(4, 2)
        >>> [each.name for each in problem.saddles], problem.minimum.name, round(problem.minimum.value, 6)
        (['2+2'], '1+3', 0.040593)

    References:
        Şimşek, Bendjeddou, Gerstner, Brea, NeurIPS 2023, arXiv:2311.01644, Thms 4.1, 4.2.
    """
    d = teachers if dimension is None else dimension
    if not 1 <= students < teachers <= d:
        raise ValueError(
            f"copy_average: teachers={teachers}, students={students}, dimension={d}; "
            "need students < teachers <= dimension."
        )
    if activation not in ("erf", "relu"):
        raise ValueError(f'copy_average: activation={activation!r}; choose "erf" or "relu".')
    V = jnp.eye(teachers, d, dtype=dtype)
    overlap, own = (_erf_overlap, lambda w: _erf_overlap(w, w)) if activation == "erf" else (_relu_overlap, _relu_self)
    constant = jnp.sum(own(V))

    def value(parameters: PyTree) -> Float[Array, ""]:
        a, w = parameters["a"], parameters["w"]
        return a @ own(w) @ a - 2 * a @ overlap(w, V) @ jnp.ones(teachers, a.dtype) + constant

    def init(key: Array) -> PyTree:
        a_key, w_key = jax.random.split(key)
        w = jax.random.normal(w_key, (students, d), dtype) / math.sqrt(d)
        return {"a": jax.random.normal(a_key, (students,), dtype), "w": w}

    if activation == "relu" and students > 1:
        return Problem(value, init, (), None)

    def at(partition: tuple[int, ...]) -> CriticalPoint:
        edges = np.cumsum((0, *partition))
        w = np.zeros((students, d))
        for i, (first, last) in enumerate(itertools.pairwise(edges)):
            w[i, first:last] = 1
        if activation == "erf":
            w /= np.sqrt([k * (2 * k - 1) for k in partition])[:, None]
            level = sum(2 / math.pi * (k * math.asin(1 / 2) - k**2 * math.asin(1 / (2 * k))) for k in partition)
            a = np.asarray(partition, float)
        else:
            k, u = teachers, 1 / math.sqrt(teachers)
            arc = (math.sqrt(1 - u**2) + (math.pi - math.acos(u)) * u) / (2 * math.pi)
            w, a = w / math.sqrt(k), np.asarray([2 * k * arc])
            level = k / 2 + k * (k - 1) / (2 * math.pi) - 2 * k**2 * arc**2
        point = {"a": jnp.asarray(a, dtype), "w": jnp.asarray(w, dtype)}
        return CriticalPoint("+".join(map(str, partition)), point, level, None, None, partition == best)

    best = (1,) * (students - 1) + (teachers - students + 1,)

    ways = _partition_counts(teachers, students)

    def other(index: int) -> CriticalPoint:
        return at(_partition(index + 1, teachers, students, ways))  # the best is the first

    return Problem(value, init, OnDemand(ways[students][teachers] - 1, other), at(best))


def attention_pca(
    covariance: Float[Array, "d d"],
    *,
    prompt: int | None = None,
    head: Literal["linear", "softmax"] = "linear",
    prompts: Float[Array, "b l d"] | None = None,
    scale: float = 1e-3,
) -> Problem:
    r"""One attention head with a rank-one value u, trained to denoise: it learns principal components.

    The head predicts the query from the prompt, :math:`T(X)=\frac1\ell\sum_k(X_1^\top u)(u^\top X_k)X_k` (linear) or
    :math:`\sum_k\mathrm{softmax}_k(X_1^\top uu^\top X_k)X_k`, and :math:`R(u)=\mathbb E|X_1-T(X)|^2`. With tokens
    N(0, Σ), :math:`q=u^\top\Sigma u`, :math:`p=u^\top\Sigma^2u`:

    * infinite prompt, both heads: :math:`R=\mathrm{tr}\Sigma-2p+qp`; critical at 0 (spectrum −4λ²) and ±v_i/√λ_i,
      :math:`R=\mathrm{tr}\Sigma-\lambda_i`, spectrum :math:`2\lambda_j(\lambda_i-\lambda_j)` and :math:`8\lambda_i^2`;
    * prompt of ℓ tokens, query among them, linear head:
      :math:`R_\ell=\mathrm{tr}\Sigma-\frac2\ell(q\,\mathrm{tr}\Sigma+(\ell+1)p)+\frac{\ell+2}{\ell^2}(q^2\mathrm{tr}\Sigma+(\ell+3)qp)`,
      critical along the same eigenvectors;
    * given ``prompts``: the mean over these, either head, a finite sum; its critical points are those of the
      population only in the limit, so that none but the origin is listed, and as minimum that of the population: at
      the prompts' own length for the linear head, at an infinite one for the softmax head.

    Args:
        covariance: Σ, positive definite, distinct eigenvalues.
        prompt: ℓ; None for an infinite prompt, or for that of ``prompts``.
        head: ``"linear"``, or ``"softmax"``, which has a closed form for an infinite prompt (the same).
        prompts: tokens to average over instead of a closed form, shape (b, ℓ, d), the query first.
        scale: standard deviation of the start about 0.

    Returns:
        The problem; the minimum is the leading eigenvector, up to its sign.

    Raises:
        ValueError: if Σ is not positive definite, the head unknown, a softmax head asked for at finite ℓ
            without prompts, or ℓ or d is not that of the prompts.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = attention_pca(jnp.diag(jnp.array([2.0, 1.0])))
        >>> float(problem.minimum.value), [float(each.curvature) for each in problem.saddles]
        (1.0, [-16.0, -4.0])

    References:
        Maulen-Soto, Boyer, arXiv:2605.18315; the form of the head is after arXiv:2505.13112, the spectra are derived
        in the tests.
    """
    sigma = numbers("attention_pca: the covariance", covariance, 2)
    if sigma.shape[0] != sigma.shape[1] or np.linalg.eigvalsh((sigma + sigma.T) / 2).min() <= 0:
        raise ValueError(f"attention_pca: the covariance has shape {sigma.shape}; give a positive definite matrix.")
    if head not in ("linear", "softmax"):
        raise ValueError(f'attention_pca: head={head!r}; choose "linear" or "softmax".')
    if prompts is None and head == "softmax" and prompt is not None:
        raise ValueError(
            'attention_pca: head="softmax" has no closed form at a finite prompt; give prompts to average over.'
        )
    if prompt is not None and prompt < 1:
        raise ValueError(f"attention_pca: prompt={prompt}; give at least one token, or None for infinitely many.")
    if prompts is not None:
        shape = jnp.shape(prompts)
        if len(shape) != 3 or 0 in shape or shape[2] != sigma.shape[0] or prompt not in (None, shape[1]):
            raise ValueError(
                f"attention_pca: prompts of shape {shape} with prompt={prompt} and a covariance of shape "
                f"{sigma.shape}; give prompts of shape (b, prompt, d)."
            )
        prompt = shape[1] if head == "linear" else None
    values, vectors = np.linalg.eigh(sigma)
    values, vectors = values[::-1], vectors[:, ::-1]
    S, total = jnp.asarray(covariance), float(values.sum())
    # R = total − 2(b q + c p) + e q² + g q p in every closed form.
    if prompt is None:
        b, c, e, g = 0.0, 1.0, 0.0, 1.0
    else:
        b, c = total / prompt, (prompt + 1) / prompt
        e, g = (prompt + 2) / prompt**2 * total, (prompt + 2) / prompt**2 * (prompt + 3)
    zero = jnp.zeros(values.size, S.dtype)

    def risk(u: Float[Array, " d"]) -> Float[Array, ""]:
        image = S @ u
        q, p = u @ image, image @ image
        return total - 2 * (b * q + c * p) + e * q**2 + g * q * p

    def components(u: Float[Array, " d"], indices: Array) -> Float[Array, " n"]:
        X = jnp.asarray(prompts)[indices]
        scores = (X @ u) * (X[:, 0] @ u)[:, None]
        mixing = scores / X.shape[1] if head == "linear" else jax.nn.softmax(scores, axis=1)
        return jnp.sum((X[:, 0] - jnp.einsum("nl,nld->nd", mixing, X)) ** 2, axis=1)

    def curvatures(length: float, i: int | None) -> np.ndarray:
        """Of R at a multiple of eigenvector i, along every eigenvector."""
        level = 0.0 if i is None else length**2 * values[i]
        slope = 0.0 if i is None else length**2 * values[i] ** 2
        rates = -2 * (b * values + c * values**2) + 2 * e * level * values + g * (values * slope + level * values**2)
        found = 2 * rates
        if i is not None:
            found[i] = 8 * length**2 * (e * values[i] ** 2 + g * values[i] ** 3)
        return found

    def at(i: int) -> CriticalPoint:
        quadratic, quartic = b * values[i] + c * values[i] ** 2, e * values[i] ** 2 + g * values[i] ** 3
        length = math.sqrt(quadratic / quartic)
        spectrum = np.sort(curvatures(length, i))
        point = jnp.asarray(length * vectors[:, i], S.dtype)
        return CriticalPoint(f"eigenvector {i}", point, total - quadratic**2 / quartic, spectrum[0], spectrum, i == 0)

    def init(key: Array) -> Array:
        return scale * jax.random.normal(key, zero.shape, zero.dtype)

    if prompts is not None:
        count = jnp.shape(prompts)[0]
        origin = CriticalPoint("origin", zero, float(jnp.mean(components(zero, jnp.arange(count)))))
        return Problem(
            lambda u: jnp.mean(components(u, jnp.arange(count))), init, (origin,), at(0), (), components, count
        )
    spectrum = np.sort(curvatures(0.0, None))
    origin = CriticalPoint("origin", zero, total, spectrum[0], spectrum)
    return Problem(risk, init, (origin, *(at(i) for i in range(1, values.size))), at(0))


def spiked_wishart_prompts(
    key: Array,
    prompts: int,
    tokens: int,
    dimension: int,
    spike: float,
    *,
    direction: Float[Array, " d"] | None = None,
    dtype: Any = jnp.float32,
) -> Float[Array, "b l d"]:
    r"""Prompts of Gaussian tokens with one direction of larger variance, N(0, I + θwwᵀ), for :func:`attention_pca`.

    Their Gram matrices are spiked Wishart matrices. What a head of rank one can learn from them depends on w:

    * one ``direction`` for all prompts: the population is that of ``attention_pca(I + θwwᵀ, prompt=ℓ)``, with minima at
      ±w up to the length; all directions orthogonal to w have the same risk, so that w is all there is to identify;
    * one for each prompt, uniform on the sphere: the risk of u depends on :math:`r=|u|^2` only, and nothing of w is
      identifiable. Given w, it is that of ``attention_pca`` with :math:`q=r+\theta s`, :math:`p=r+\kappa s`,
      :math:`s=(u\cdot w)^2`, :math:`\kappa=2\theta+\theta^2`; with :math:`\mathbb Es=r/d` and
      :math:`\mathbb Es^2=3r^2/d(d+2)`,

      .. math:: R_\ell=T-2Ar+Br^2,\quad T=d+\theta,\quad
          A=\tfrac1\ell\bigl(T(1+\tfrac\theta d)+(\ell+1)(1+\tfrac\kappa d)\bigr),

      .. math:: B=\tfrac{\ell+2}{\ell^2}\Bigl(T\bigl(1+\tfrac{2\theta}d+\tfrac{3\theta^2}{d(d+2)}\bigr)
          +(\ell+3)\bigl(1+\tfrac{\theta+\kappa}d+\tfrac{3\theta\kappa}{d(d+2)}\bigr)\Bigr),

      whose minima are the sphere :math:`|u|^2=A/B`, at :math:`T-A^2/B`. The tokens of all prompts together have the
      covariance (1 + θ/d) I, but they are no Gaussians of that covariance: its minimum, which ``attention_pca`` would
      list, is not the one of these prompts.

    Args:
        key: typed random key.
        prompts: b.
        tokens: ℓ, of a prompt, the query first.
        dimension: d.
        spike: θ ≥ 0.
        direction: w, of any length but zero, for all prompts; None draws one for each.
        dtype: of the tokens.

    Returns:
        The tokens, shape (b, ℓ, d).

    Raises:
        ValueError: if a size is below one, the spike is negative, or the direction has another shape or length zero.
        TypeError: if the key is no typed key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = jnp.array([1.0, 0.0, 0.0], "float32")
        >>> X = spiked_wishart_prompts(jax.random.key(0), 500, 8, 3, 3.0, direction=w)
        >>> problem = attention_pca(jnp.eye(3, dtype="float32") + 3 * jnp.outer(w, w), prompts=X)
        >>> problem.size, bool(problem.value(problem.minimum.point) < problem.saddles[0].value)
        (500, True)

    References:
        Maulen-Soto, Boyer, arXiv:2605.18315; the risk for random w is ours, and is derived in the tests.
    """
    check_key(key, "spiked_wishart_prompts")
    if min(prompts, tokens, dimension) < 1:
        raise ValueError(
            f"spiked_wishart_prompts: prompts={prompts}, tokens={tokens}, dimension={dimension}; "
            "give at least one of each."
        )
    if not 0 <= spike < math.inf:
        raise ValueError(f"spiked_wishart_prompts: spike={spike}; give zero or a positive number.")
    if direction is not None and (direction.shape != (dimension,) or not np.any(np.asarray(direction))):
        raise ValueError(
            f"spiked_wishart_prompts: direction={direction} for dimension={dimension}; give a vector of that size, "
            "and not zero."
        )
    white_key, spike_key, direction_key = jax.random.split(key, 3)
    white = jax.random.normal(white_key, (prompts, tokens, dimension), dtype)
    along = jax.random.normal(spike_key, (prompts, tokens, 1), dtype)
    if direction is None:
        w = jax.random.normal(direction_key, (prompts, 1, dimension), dtype)
    else:
        w = jnp.asarray(direction, dtype)[None, None, :]
    return white + math.sqrt(spike) * along * (w / jnp.linalg.norm(w, axis=-1, keepdims=True))
