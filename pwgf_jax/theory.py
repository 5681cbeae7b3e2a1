r"""What the theorems on perturbed Wasserstein gradient flows ask for: parameters, and the constants behind them.

:func:`theory_parameters` turns the accuracy (ε, δ) and the smoothness constants of a functional into the thresholds of
:func:`pwgf_jax.pwgf`; :func:`estimate_smoothness` measures those constants from below.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pwgf_jax.calculus import Functional, HessianOperator, Part, wasserstein_hessian
from pwgf_jax.krylov import check_key, lanczos
from pwgf_jax.measures import Field, Particles, norm, per_particle, traceable
from pwgf_jax.perturbation import hessian_guided, isotropic, white_noise

__all__ = ["Constants", "Smoothness", "TheoryParameters", "TheoryWarning", "estimate_smoothness", "theory_parameters"]


class TheoryWarning(UserWarning):
    """A condition of the theorems does not hold: the parameters are usable, the guarantee is not there."""


class Constants(NamedTuple):
    r"""The factors that the theorems hide in their :math:`\tilde O`, dimensionless.

    The papers do not give them. These defaults are ours, from the linearised flow at a saddle and one cubic
    term, with room to spare; they are not proved.

    Args:
        noise: of η_p. A jump raises F by no more than about this times δ³/ρ² in the mean.
        window: of the waiting time, in units of the time that the linearised flow needs to leave the saddle.
        decrease: of F_thres. The linearised exit gains 0.17 δ³/ρ², the whole descent along a cubic 0.67 δ³/ρ².

    Example:
        >>> Constants(window=3.0)
        Constants(noise=0.05, window=3.0, decrease=0.1)
    """

    noise: float = 0.05
    window: float = 2.0
    decrease: float = 0.1


@dataclass(frozen=True)
class TheoryParameters(Mapping[str, Any]):
    """Parameters of perturbed Wasserstein gradient flow; unpacks as the keyword arguments of :func:`pwgf_jax.pwgf`.

    Args:
        step_size: η [length² per unit of F].
        eps: ε, gradient norm that counts as stationary.
        eta_p: η_p, factor of the noise [length³ per unit of F].
        k_thres: length of the waiting window [steps].
        t_thres: length of the waiting window in continuous time [length² per unit of F].
        f_thres: decrease that a window has to exceed [units of F].

    Example:
        >>> parameters = theory_parameters(1e-3, 0.1, step_size=0.1)
        >>> sorted(parameters), sorted(parameters.continuous)
        (['eps', 'eta_p', 'f_thres', 'k_thres'], ['eps', 'eta_p', 'f_thres', 't_thres'])
    """

    step_size: float
    eps: float
    eta_p: float
    k_thres: int
    t_thres: float
    f_thres: float

    def __getitem__(self, name: str) -> Any:
        if name not in tuple(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(("eps", "eta_p", "k_thres", "f_thres"))

    def __len__(self) -> int:
        return 4

    @property
    def continuous(self) -> dict[str, float]:
        """The keyword arguments of :func:`pwgf_jax.solve.continuous.continuous_pwgf`, but for the end."""
        return {"eps": self.eps, "eta_p": self.eta_p, "t_thres": self.t_thres, "f_thres": self.f_thres}


def theory_parameters(
    eps: float,
    delta: float,
    *,
    lipschitz_gradient: Any = 1.0,
    lipschitz_hessian: Any = 1.0,
    lipschitz_local: Any = 0.0,
    noise_energy: Any = None,
    step_size: float | None = None,
    failure: float = 0.01,
    decrease_available: float | None = None,
    constants: Constants | None = None,
) -> TheoryParameters:
    r"""The thresholds that Theorems 5.2 and 5.5 ask for, to stop at an (ε, δ)-second-order stationary point.

    With :math:`\rho=L_2+L_3`, E the energy of the noise and :math:`D=\delta^3/\rho^2`,

    * :math:`F_{thres}=c_F\,D`: by about D does F fall from a saddle of curvature −δ before the cubic term matters,
      at a distance δ/ρ;
    * :math:`\eta_p=c_p\min\bigl(\sqrt{D/(L_1E)},\;D/(\varepsilon\sqrt E)\bigr)`: a jump raises F by at most
      :math:`\varepsilon\eta_p\|\xi\|+\frac{L_1}2\eta_p^2\|\xi\|^2`, small against D;
    * :math:`T_{thres}=\frac{c_T}\delta\log\bigl(1+\frac1{\rho\,\eta_p z}\bigr)`,
      :math:`k_{thres}=T_{thres}\,\delta/\log(1+\eta\delta)`: the noise along the unit eigenfunction of −δ is
      :math:`N(0,\eta_p^2\delta^2)`, beyond η_p δ z with probability 1 − ζ for :math:`z=\sqrt{\pi/2}\,\zeta`,
      and grows by 1 + ηδ a step until it measures δ/ρ.

    With constants and energy of one these are the papers' :math:`F_{thres}=\tilde O(\delta^3)`,
    :math:`\eta_p=\tilde O(\delta^{3/2}\wedge\delta^3/\varepsilon)`, :math:`k_{thres}=\tilde O(1/(\eta\delta))`. How L₁,
    ρ, E and the logarithm enter is not known from the papers: it is derived here from the accounting above, so that
    the parameters follow any change of units. The default constants are ours too, see :class:`Constants`.

    Args:
        eps: ε, gradient norm that counts as stationary [units of F per length].
        delta: δ, negative curvature that has to be left behind [units of F per length²].
        lipschitz_gradient: L₁, of the gradient [units of F per length²].
        lipschitz_hessian: L₂, of the integral part of the Hessian [units of F per length³].
        lipschitz_local: L₃, of its local part [units of F per length³].
        noise_energy: E = tr H_μ² at saddles, as by :func:`pwgf_jax.perturbation.hessian_energy`; L₁² if omitted, as
            for one direction of the largest curvature [units of F per length², squared].
        step_size: η of the discrete algorithm; 1/(2L₁) if omitted.
        failure: ζ, probability of missing the escape, at one saddle or, with ``decrease_available``, in the whole run.
        decrease_available: Δ_F = F(μ₀) − inf F: ζ is then shared among the Δ_F/F_thres + 1 saddles that a run can
            meet.
        constants: the factors c_p, c_T and c_F.

    Returns:
        A :class:`TheoryParameters`: ``pwgf(parameters.step_size, **parameters)``.

    Raises:
        ValueError: if a number is out of range.

    Warns:
        TheoryWarning: if :math:`(L_2+L_3)\varepsilon>\delta^2`, δ > L₁, or η > 1/L₁: the theorems are silent then.

    Example:
        >>> from pwgf_jax import pwgf
        >>> parameters = theory_parameters(1e-3, 0.1, lipschitz_gradient=2.0, step_size=0.1)
        >>> {name: float(f"{number:.3g}") for name, number in parameters.items()}
        {'eps': 0.001, 'eta_p': 0.000559, 'k_thres': 2390.0, 'f_thres': 0.0001}
        >>> method = pwgf(parameters.step_size, **parameters)

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Thms 5.2 and 5.5, Prop. 5.4; Jin et al., arXiv:1703.00887, for the same
        accounting in Euclidean space.
    """
    gradient, hessian, local = (float(x) for x in (lipschitz_gradient, lipschitz_hessian, lipschitz_local))
    rho, energy = hessian + local, gradient**2 if noise_energy is None else float(noise_energy)
    factors = Constants() if constants is None else constants
    positive = {"delta": delta, "lipschitz_gradient": gradient, "noise_energy": energy, "step_size": step_size}
    positive |= {"lipschitz_hessian + lipschitz_local": rho, "decrease_available": decrease_available}
    positive |= {f"constants.{name}": factor for name, factor in factors._asdict().items()}
    for name, number in positive.items():
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"theory_parameters: {name}={number}; give a positive number.")
    for name, number in (("eps", eps), ("lipschitz_hessian", hessian), ("lipschitz_local", local)):
        if not 0 <= number < math.inf:
            raise ValueError(f"theory_parameters: {name}={number}; give a non-negative number.")
    if not 0 < failure < 1:
        raise ValueError(f"theory_parameters: failure={failure}; give a probability between 0 and 1.")
    eta = 0.5 / gradient if step_size is None else step_size
    _warn_where_theorems_are_silent(eps, delta, gradient, rho, eta)

    gain = delta**3 / rho**2
    f_thres = factors.decrease * gain
    by_curvature = math.sqrt(gain / (gradient * energy))
    by_gradient = gain / (eps * math.sqrt(energy)) if eps > 0 else math.inf
    eta_p = factors.noise * min(by_curvature, by_gradient)
    saddles = 1 if decrease_available is None else decrease_available / f_thres + 1
    smallest = math.sqrt(math.pi / 2) * failure / saddles  # P(|z| < this) is at most the failure allowed
    growth = factors.window * math.log1p(1 / (rho * eta_p * smallest))
    k_thres = math.ceil(growth / math.log1p(eta * delta))
    return TheoryParameters(eta, eps, eta_p, k_thres, growth / delta, f_thres)


def _warn_where_theorems_are_silent(eps: float, delta: float, gradient: float, rho: float, eta: float) -> None:
    if rho * eps > delta**2:
        warnings.warn(
            f"theory_parameters: (L2 + L3) eps = {rho * eps:.3g} exceeds delta^2 = {delta**2:.3g}; "
            f"take eps <= {delta**2 / rho:.3g} or delta >= {math.sqrt(rho * eps):.3g}.",
            TheoryWarning,
            stacklevel=3,
        )
    if delta > gradient:
        warnings.warn(
            f"theory_parameters: delta = {delta:.3g} exceeds L1 = {gradient:.3g}, beyond which there is no curvature; "
            f"take delta <= {gradient:.3g} or a larger lipschitz_gradient.",
            TheoryWarning,
            stacklevel=3,
        )
    if eta * gradient > 1:
        warnings.warn(
            f"theory_parameters: step_size = {eta:.3g} exceeds 1/L1 = {1 / gradient:.3g}, up to which descent is sure; "
            f"take step_size <= {1 / gradient:.3g}.",
            TheoryWarning,
            stacklevel=3,
        )


class Smoothness(NamedTuple):
    """Smoothness constants as :func:`theory_parameters` takes them: ``theory_parameters(eps, delta, **s._asdict())``.

    Args:
        lipschitz_gradient: L₁, of the gradient [units of F per length²].
        lipschitz_hessian: L₂, of the integral part of the Hessian [units of F per length³].
        lipschitz_local: L₃, of its local part [units of F per length³].

    Example:
        >>> Smoothness(2.0, 6.0, 0.0)._asdict()
        {'lipschitz_gradient': 2.0, 'lipschitz_hessian': 6.0, 'lipschitz_local': 0.0}
    """

    lipschitz_gradient: Any
    lipschitz_hessian: Any
    lipschitz_local: Any


def estimate_smoothness(
    key: Array, F: Functional, mu: Particles, *, radius: float, probes: int = 8, depth: int = 16
) -> Smoothness:
    r"""Lower bounds on the smoothness constants of F near μ, by sampling.

    The measure is pushed along random fields v of :math:`L^2(\mu)` norm ``radius``, three a probe: a
    Hessian-guided one, a rigid shift, and independent noise. Between :math:`\nu=(\mathrm{Id}+\frac v2)_\sharp\mu` and
    :math:`\nu'=(\mathrm{Id}+v)_\sharp\mu`, whose points are coupled at distance ``radius``/2,

    * L₁: the largest :math:`\|H+H'\|`, at μ and at ν';
    * L₂: the largest :math:`\|H_{\nu'}-H_\nu\|` per distance, both by Lanczos;
    * L₃: the largest :math:`L^2(\mu)` norm per distance of the change of :math:`\nabla\nabla_\mu F` at the particles,
      in operator norm at each, by power iteration.

    What is returned is never above the true constants of the ball of that radius, up to rounding, but nothing
    bounds it from below: rare directions are missed. The papers' Lipschitz conditions are known to us in outline
    only; these norms are the weakest that fit it, so that the bounds hold for the stronger ones as well.

    Args:
        key: typed random key.
        F: the functional.
        mu: the measure.
        radius: size of the push-forwards [length]; the constants are those of this neighbourhood.
        probes: how many triples of fields, each some 10·depth Hessian products.
        depth: Krylov dimension, and power iterations, capped by the size of a field.

    Returns:
        A :class:`Smoothness` of scalars.

    Raises:
        TypeError: if the key is no typed key.
        ValueError: if the radius is not positive, or there is no probe.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> F = lambda mu: mu.weights @ jnp.sum(mu.points**2, axis=-1)  # quadratic: its Hessian is 2 everywhere
        >>> found = estimate_smoothness(jax.random.key(0), F, Particles.uniform(jnp.ones((4, 2))), radius=1.0)
        >>> [round(float(x), 4) for x in found]
        [2.0, 0.0, 0.0]

    References:
        Yamamoto, Kim, Suzuki, arXiv:2509.16974, Eqs. (12)-(14), read as above.
    """
    check_key(key, "estimate_smoothness")
    if not 0 < radius < math.inf:
        raise ValueError(f"estimate_smoothness: radius={radius}; give a positive length.")
    if probes < 1 or depth < 1:
        raise ValueError(f"estimate_smoothness: probes={probes}, depth={depth}; give at least one of each.")
    depth = min(depth, sum(leaf.size for leaf in jax.tree.leaves(mu.points)))
    return _sample(probes, depth, key, traceable(F), mu, jnp.asarray(radius, mu.weights.dtype))


@partial(jax.jit, static_argnums=(0, 1))
def _sample(probes: int, depth: int, key: Array, F: Functional, mu: Particles, radius: Float[Array, ""]) -> Smoothness:
    field_key, start_key = jax.random.split(key)
    start = white_noise(start_key, mu)

    def along(v: Field) -> Smoothness:
        length = norm(mu, v)
        unit = _scaled(_inverse(length), v)
        near, far = mu.push_forward(_scaled(radius / 2, unit)), mu.push_forward(_scaled(radius, unit))
        # A field that vanishes looks at μ itself, and tells nothing about changes.
        per_distance = jnp.where(length > 0, 2 / radius, 0)
        return Smoothness(
            _operator_norm(wasserstein_hessian(F, far, "full"), start, depth),
            per_distance * _operator_norm(_change(F, near, far, "integral"), start, depth),
            per_distance * _pointwise_norm(_change(F, near, far, "local"), start, depth),
        )

    triples = jax.lax.map(lambda k: _displacements(k, F, mu), jax.random.split(field_key, probes))
    here = jax.tree.map(jnp.zeros_like, mu.points)
    fields = jax.tree.map(lambda zero, v: jnp.concatenate([zero[None], v.reshape(-1, *zero.shape)]), here, triples)
    return jax.tree.map(jnp.max, jax.lax.map(along, fields))


def _displacements(key: Array, F: Functional, mu: Particles) -> Field:
    """Three random fields, stacked: along the curvature, every particle alike, and every particle by itself."""
    guided_key, free_key = jax.random.split(key)
    free = isotropic(free_key, mu, 1.0)
    fields = hessian_guided(guided_key, F, mu), jax.tree.map(lambda z: jnp.broadcast_to(z[:1], z.shape), free), free
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fields)


def _change(F: Functional, near: Particles, far: Particles, part: Part) -> HessianOperator:
    """The Hessian at one measure minus that at the other, fields identified particle by particle."""
    before, after = wasserstein_hessian(F, near, part), wasserstein_hessian(F, far, part)
    return HessianOperator(lambda u: jax.tree.map(jnp.subtract, after(u), before(u)), near)


def _operator_norm(operator: HessianOperator, start: Field, depth: int) -> Float[Array, ""]:
    """The largest |Ritz value|, which lies within the spectrum."""
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(lanczos(operator, start, depth).tridiagonal)))


def _pointwise_norm(operator: HessianOperator, start: Field, iterations: int) -> Float[Array, ""]:
    r"""The L²(μ) norm of the norms of a field of matrices, by power iteration at every particle at once."""

    def directions(u: Field) -> Field:
        squares = jax.tree.map(lambda leaf: jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))), u)
        inverse = _inverse(jnp.sqrt(sum(jax.tree.leaves(squares))))
        return jax.tree.map(lambda leaf: per_particle(inverse, leaf) * leaf, u)

    along = jax.lax.fori_loop(0, iterations, lambda _, u: directions(operator(u)), directions(start))
    return norm(operator.mu, operator(along))


def _inverse(length: Array) -> Array:
    """1/length, and 0 for 0."""
    return jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)


def _scaled(factor: Any, u: Field) -> Field:
    return jax.tree.map(lambda leaf: jnp.asarray(factor).astype(leaf.dtype) * leaf, u)
