"""unmask: diffusion language models, trained, decoded and evaluated."""

__version__ = "0.1.0"
