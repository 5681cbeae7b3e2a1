"""The thresholds that the theorems on perturbed Wasserstein gradient flows ask for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Factors", "TheoryParameters", "TheoryWarning", "theory_parameters"]


class TheoryWarning(UserWarning):
    """A condition of the theorems does not hold: the parameters are usable, the guarantee is not there."""


class Factors(NamedTuple):
    r"""The factors that the theorems hide in their :math:`\tilde O`, dimensionless.

    The papers do not give them. These defaults are ours, from the linearised flow at a saddle and one cubic
    term, with room to spare; they are not proved.

    Args:
        noise: of η_p. A jump raises F by no more than about this times δ³/ρ² in the mean.
        window: of the waiting time, in units of the time that the linearised flow needs to leave the saddle.
        decrease: of F_thres. The linearised exit gains 0.17 δ³/ρ², the whole descent along a cubic 0.67 δ³/ρ².

    Example:
        >>> Factors(window=3.0)
        Factors(noise=0.05, window=3.0, decrease=0.1)
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
        delta: δ, negative curvature that is left behind [units of F per length²].

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
    delta: float

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
    factors: Factors | None = None,
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

    With factors and energy of one these are the papers' :math:`F_{thres}=\tilde O(\delta^3)`,
    :math:`\eta_p=\tilde O(\delta^{3/2}\wedge\delta^3/\varepsilon)`, :math:`k_{thres}=\tilde O(1/(\eta\delta))`. How L₁,
    ρ, E and the logarithm enter is not known from the papers: it is derived here from the accounting above, so that
    the parameters follow any change of units. The default factors are ours too, see :class:`Factors`.

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
        factors: the c_p, c_T and c_F.

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
    factors = Factors() if factors is None else factors
    positive = {"delta": delta, "lipschitz_gradient": gradient, "noise_energy": energy, "step_size": step_size}
    positive |= {"lipschitz_hessian + lipschitz_local": rho, "decrease_available": decrease_available}
    positive |= {f"factors.{name}": factor for name, factor in factors._asdict().items()}
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
    return TheoryParameters(eta, eps, eta_p, k_thres, growth / delta, f_thres, delta)


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
