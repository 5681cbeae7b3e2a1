"""The pieces that flows are composed of and that an optax user can call by themselves."""

from pwgf_jax.transforms.trigger import Trigger, Window, gradient_trigger

__all__ = ["Trigger", "Window", "gradient_trigger"]
