"""Provenance: how a result was obtained; the facts that travel with it in ``meta``."""

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """What made a result: this package, TransformerLens, torch."""
    found = {}
    for package in ("lens-scopes", "transformer-lens", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
