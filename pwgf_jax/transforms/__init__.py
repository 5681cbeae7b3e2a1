"""The pieces that flows are composed of and that an optax user can call by themselves."""

from pwgf_jax.transforms.trigger import Examination, Trigger, Window, certificate_trigger, gradient_trigger

__all__ = ["Examination", "Trigger", "Window", "certificate_trigger", "gradient_trigger"]
