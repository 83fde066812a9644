"""How sure a model was of a token, in a few steps: the colours of pages, pictures and terminals mean the same."""

LEVELS = (0.5, 0.75, 0.9, 0.99)  # confidences at which the colour changes


def level(confidence: float) -> int:
    """0 (unsure, or not a number) to 4 (sure)."""
    return sum(confidence >= limit for limit in LEVELS)
