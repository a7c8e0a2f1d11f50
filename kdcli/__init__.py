"""kdcli distils vision models from a YAML spec."""

__version__ = "0.2.0"
