"""The version, read from the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("awqkit")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0+unknown"
