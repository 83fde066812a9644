"""The browser of the viewer's tests, for the report of a real (small) quickstart."""

from tests.viewer.conftest import browser

__all__ = ["browser"]
