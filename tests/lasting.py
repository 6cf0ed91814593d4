"""What lasts as long as the test session: factories enter it here, and conftest.py closes it."""

from contextlib import ExitStack

lasting = ExitStack()
