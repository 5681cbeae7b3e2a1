r"""What each method is given, from what is known of the objective: :class:`Constants`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pwgf_jax import arguments

__all__ = ["Constants"]


@dataclass(frozen=True)
class Constants:
    r"""What is known of an objective, and the numbers that every method makes of it.

    Each method of this class returns the keyword arguments of the transformation of its name, which lack the key:
    ``pgd(**constants.pgd(), key=key)``. At a saddle of curvature −δ two scales matter: the *reach* :math:`\delta/\rho`,
    up to which the curvature stays negative, and :math:`\delta^3/\rho^2`, by which f falls until there. Where a paper
    gives numbers they are worst cases; those here, without a paper's year in their name, are ours: of the papers'
    orders, with factors that work in practice.

    Args:
        smoothness: ℓ, Lipschitz constant of the gradient where runs go [units of f per length²].
        hessian_lipschitz: ρ, of the Hessian [units of f per length³].
        eps: ε, gradient norm of a second-order point [units of f per length].
        delta: δ, whose least curvature is at least −δ [units of f per length²]; :math:`\sqrt{\rho\epsilon}` balances
            the two.
        dimension: d, how many parameters.
        size: n, terms of a finite sum; one where the objective is none.

    Raises:
        ValueError: if a number is not positive, or a count no whole number.

    Example:
        >>> constants = Constants(2.0, 6.0, eps=1e-3, delta=0.3, dimension=20)
        >>> constants.reach, constants.window, round(constants.decrease, 6)
        (0.05, 82, 7.5e-05)
    """

    smoothness: float
    hessian_lipschitz: float
    eps: float
    delta: float
    dimension: int = 1
    size: int = 1

    def __post_init__(self) -> None:
        for name in ("smoothness", "hessian_lipschitz", "eps", "delta"):
            arguments.positive(f"Constants: {name}", getattr(self, name))
        for name in ("dimension", "size"):
            arguments.whole(f"Constants: {name}", getattr(self, name))

    @property
    def reach(self) -> float:
        """δ/ρ, how far a curvature of −δ reaches for certain."""
        return self.delta / self.hessian_lipschitz

    @property
    def window(self) -> int:
        r"""Steps of 1/ℓ that carry a start :math:`\frac1{100\sqrt d}` inside the reach out of it, twice over."""
        return math.ceil(2 * self.smoothness / self.delta * math.log(100 * math.sqrt(self.dimension)))

    @property
    def decrease(self) -> float:
        """δ³/10ρ², a tenth of the scale of what an escape brings."""
        return self.delta**3 / self.hessian_lipschitz**2 / 10

    def sgd(self) -> dict[str, Any]:
        """Batches of ⌈√n⌉ terms.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.3, size=100).sgd()
            {'size': 100, 'batch': 10}
        """
        return {"size": self.size, "batch": math.ceil(math.sqrt(self.size))}

    def scsg(self) -> dict[str, Any]:
        """The same, and all terms where an epoch opens.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.3, size=100).scsg()["large_batch"]
            100
        """
        return {**self.sgd(), "large_batch": self.size}

    def spider(self) -> dict[str, Any]:
        """The same, with epochs as long as batches are large.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.3, size=100).spider()["epoch"]
            10

        References:
            Fang, Li, Lin, Zhang, arXiv:1807.01695.
        """
        return {**self.scsg(), "epoch": self.sgd()["batch"]}

    def gradient_trigger(self) -> dict[str, Any]:
        """The window and the decrease above, where the gradient is at most ε.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.3).gradient_trigger()["k_thres"]
            62
        """
        return {"eps": self.eps, "k_thres": self.window, "f_thres": self.decrease}

    def pgd(self) -> dict[str, Any]:
        r"""Steps of 1/ℓ and jumps in a ball of a tenth of the reach.

        Example:
            >>> found = Constants(2.0, 6.0, eps=1e-3, delta=0.3).pgd()
            >>> found["learning_rate"], round(found["radius"], 6)
            (0.5, 0.005)
        """
        return {"learning_rate": 1 / self.smoothness, "radius": self.reach / 10, **self.gradient_trigger()}

    def accelerated_descent(self) -> dict[str, Any]:
        r"""Steps of 1/4ℓ, :math:`\theta=\frac14\sqrt{\delta/\ell}`, :math:`\gamma=\theta^2/\eta`, a stretch of γ/4ρ.

        Example:
            >>> found = Constants(2.0, 6.0, eps=1e-3, delta=0.5).accelerated_descent()
            >>> found["learning_rate"], found["theta"], found["gamma"]
            (0.125, 0.125, 0.125)

        References:
            Jin, Netrapalli, Jordan, arXiv:1711.10456, Eq. (3), with δ for √(ρε).
        """
        eta, theta = 1 / (4 * self.smoothness), math.sqrt(self.delta / self.smoothness) / 4
        gamma = theta**2 / eta
        return {"learning_rate": eta, "theta": theta, "gamma": gamma, "stretch": gamma / (4 * self.hessian_lipschitz)}

    def hessian_noise(self, length: float | None = None) -> dict[str, Any]:
        r"""The factor :math:`\eta_p=\frac r{\ell\sqrt d}`: as long as noise in a ball of radius r where H is ℓ.

        Args:
            length: r; a tenth of the reach, as in :meth:`pgd`, if it is not given.

        Example:
            >>> round(Constants(2.0, 6.0, eps=1e-3, delta=0.3, dimension=4).hessian_noise()["eta_p"], 6)
            0.00125
        """
        r = self.reach / 10 if length is None else length
        return {"eta_p": r / (self.smoothness * math.sqrt(self.dimension))}

    def noisy_sgd(self, length: float | None = None) -> dict[str, Any]:
        r"""Of ``optax.noisy_sgd``: Gaussian noise of length r in every gradient, of variance :math:`r^2/d`.

        Args:
            length: r [units of the gradient]; ε/3 if it is not given.

        Example:
            >>> round(Constants(2.0, 6.0, eps=3.0, delta=0.3, dimension=4).noisy_sgd()["eta"], 6)
            0.25
        """
        r = self.eps / 3 if length is None else length
        return {"learning_rate": 1 / self.smoothness, "eta": r**2 / self.dimension, "gamma": 0.0}

    def pgd_2017(self, gap: float, failure: float = 0.1, c: float = 0.5) -> dict[str, Any]:
        r"""The constants of the first paper on perturbed gradient descent, for δ = √(ρε).

        :math:`\chi=3\max\{\log\frac{d\ell\Delta_f}{c\epsilon^2p},4\}`, :math:`\eta=c/\ell`,
        :math:`r=\frac{\sqrt c}{\chi^2}\frac\epsilon\ell`, trigger at :math:`\frac{\sqrt c}{\chi^2}\epsilon`,
        :math:`f=\frac c{\chi^3}\sqrt{\epsilon^3/\rho}`, :math:`t=\frac\chi{c^2}\frac\ell{\sqrt{\rho\epsilon}}`.

        Args:
            gap: Δ_f = f(x₀) − f*.
            failure: p, probability of failure.
            c: what the paper leaves open, at most one.

        Returns:
            The keyword arguments of :func:`pwgf_jax.transforms.pgd`.

        Raises:
            ValueError: if a number is out of range.

        Example:
            >>> found = Constants(1.0, 1.0, eps=0.01, delta=0.1, dimension=10).pgd_2017(gap=1.0)
            >>> found["learning_rate"], found["k_thres"]
            (0.5, 1742)

        References:
            Jin et al., arXiv:1703.00887, Alg. 3 (constants recalled).
        """
        _check_run("pgd_2017", gap, failure)
        arguments.positive("pgd_2017: c", c)
        if c > 1:
            raise ValueError(f"pgd_2017: c={c}; give a number at most one.")
        chi = 3 * max(math.log(self.dimension * self.smoothness * gap / (c * self.eps**2 * failure)), 4)
        eps = math.sqrt(c) / chi**2 * self.eps
        return {
            "learning_rate": c / self.smoothness,
            "radius": eps / self.smoothness,
            "eps": eps,
            "k_thres": math.ceil(chi / c**2 * self.smoothness / math.sqrt(self.hessian_lipschitz * self.eps)),
            "f_thres": c / chi**3 * math.sqrt(self.eps**3 / self.hessian_lipschitz),
        }

    def pgd_2021(self, gap: float, failure: float = 0.1) -> dict[str, Any]:
        r"""The constants of the second paper on perturbed gradient descent, for δ = √(ρε).

        :math:`\eta=1/\ell`, displacement :math:`\eta\epsilon/(400\iota^3)`, :math:`t=\iota\ell/\sqrt{\rho\epsilon}`,
        :math:`f=\frac1{50\iota^3}\sqrt{\epsilon^3/\rho}`, ι the least with
        :math:`400\iota^4\frac{\ell\Delta_f}{\epsilon^2}\frac{\ell\sqrt d}{\sqrt{\rho\epsilon}}\iota^22^{8-\iota}\le p`.

        Args:
            gap: Δ_f = f(x₀) − f*.
            failure: p, probability of failure.

        Returns:
            The keyword arguments of :func:`pwgf_jax.transforms.pgd`; that algorithm has ``stop=False``.

        Raises:
            ValueError: if a number is out of range.

        Example:
            >>> Constants(1.0, 1.0, eps=0.01, delta=0.1, dimension=10).pgd_2021(gap=1.0)["k_thres"]
            757

        References:
            Jin, Netrapalli, Ge, Kakade, Jordan, arXiv:1902.04811, Thm 18.
        """
        _check_run("pgd_2021", gap, failure)
        ell, curvature = self.smoothness, math.sqrt(self.hessian_lipschitz * self.eps)
        rounds = 400 * ell * gap / self.eps**2 * ell * math.sqrt(self.dimension) / curvature
        iota = 1.0
        while rounds * iota**6 * 2 ** (8 - iota) > failure:
            iota += 0.1
        return {
            "learning_rate": 1 / ell,
            "radius": self.eps / (400 * iota**3) / ell,
            "eps": self.eps,
            "k_thres": math.ceil(iota * ell / curvature),
            "f_thres": math.sqrt(self.eps**3 / self.hessian_lipschitz) / (50 * iota**3),
        }

    def ssrgd(self) -> dict[str, Any]:
        r"""Steps of 1/2ℓ, batches and epochs of :math:`\sqrt n`; twice the window, for the steps are half as long.

        Example:
            >>> found = Constants(2.0, 6.0, eps=1e-3, delta=0.3, size=100).ssrgd()
            >>> found["batch"], found["epoch"], found["k_thres"]
            (10, 10, 124)

        References:
            Zhize Li, NeurIPS 2019, arXiv:1904.09265, for the orders of batch, epoch and step.
        """
        return {
            "learning_rate": 0.5 / self.smoothness,
            **self.spider(),
            "radius": self.reach / 10,
            "eps": self.eps,
            "f_thres": self.decrease,
            "k_thres": 2 * self.window,
        }

    def negative_curvature_descent(self) -> dict[str, Any]:
        """ℓ, ρ, ε and δ, of which Neon2 makes its own steps.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.3).negative_curvature_descent()["delta"]
            0.3
        """
        names = ("smoothness", "hessian_lipschitz", "eps", "delta")
        return {name: getattr(self, name) for name in names}

    def zeroth_order_descent(self) -> dict[str, Any]:
        """The same.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.3).zeroth_order_descent()["smoothness"]
            2.0
        """
        return self.negative_curvature_descent()

    def compressed_sgd(self, k: int) -> dict[str, Any]:
        r"""For a compressor that keeps k of d numbers: rate k/dℓ, noise of length ε/3, a reset every ⌈d/k⌉ steps.

        Args:
            k: numbers that are sent.

        Raises:
            ValueError: if k is no whole number of at least one.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.3, dimension=20).compressed_sgd(2)["reset_every"]
            10

        References:
            Avdiukhin, Yaroslavtsev, arXiv:2105.10090, for the order of the rate.
        """
        arguments.whole("Constants.compressed_sgd: k", k)
        return {
            "learning_rate": k / self.dimension / self.smoothness,
            "noise_radius": self.eps / 3,
            "reset_every": math.ceil(self.dimension / k),
        }

    def dimer(self) -> dict[str, Any]:
        """Gradients a tenth of the reach apart, turned at the rate 1/ℓ; a kick as long, below a curvature of −δ/2.

        Example:
            >>> sorted(Constants(2.0, 6.0, eps=1e-3, delta=0.3).dimer())
            ['kick', 'rotation_rate', 'separation', 'tolerance']
        """
        return {
            "separation": self.reach / 10,
            "rotation_rate": 1 / self.smoothness,
            "kick": self.reach / 10,
            "tolerance": self.delta / 2,
        }

    def scale_by_saddle_free_newton(self) -> dict[str, Any]:
        """β = δ²: curvatures up to δ are not resolved.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.5).scale_by_saddle_free_newton()
            {'beta': 0.25}
        """
        return {"beta": self.delta**2}

    def cubic_newton(self) -> dict[str, Any]:
        """M = ρ, the least with which the cubic model is an upper bound of f.

        Example:
            >>> Constants(2.0, 6.0, eps=1e-3, delta=0.5).cubic_newton()
            {'lipschitz': 6.0}

        References:
            Nesterov, Polyak, Math. Program. 108 (2006).
        """
        return {"lipschitz": self.hessian_lipschitz}

    def constrained_escape(self, radius: float) -> dict[str, Any]:
        r"""In a set that holds a ball of this radius R: γ = δ(R/2)², and ε · R/2 for the gap.

        A point halfway to the boundary sees the whole of a curvature of −δ over R/2 at least, and its Frank–Wolfe gap
        is at least R/2 times the gradient.

        Args:
            radius: R.

        Example:
            >>> found = Constants(2.0, 6.0, eps=1e-3, delta=0.5).constrained_escape(2.0)
            >>> found["eps"], found["gamma"]
            (0.001, 0.5)
        """
        known = {"smoothness": self.smoothness, "hessian_lipschitz": self.hessian_lipschitz}
        return known | {"eps": self.eps * radius / 2, "gamma": self.delta * (radius / 2) ** 2}


def _check_run(caller: str, gap: float, failure: float) -> None:
    arguments.positive(f"{caller}: gap", gap)
    if not 0 < failure < 1:
        raise ValueError(f"{caller}: failure={failure}; give a probability, 0 < failure < 1.")
