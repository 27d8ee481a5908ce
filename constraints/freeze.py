"""Write a pip constraints file of the environment that runs this: ``python constraints/freeze.py > constraints/X.txt``.

Every version is pinned as installed. A release that needs a newer Python than the oldest we support gets a marker, so
that the same file serves on older ones too (pip is free there). Local version labels (torch's "+cpu") are dropped.
"""

import re
import sys
from importlib.metadata import distributions

OLDEST = (3, 10)
SKIPPED = {"pip", "setuptools", "wheel", "lens-scopes"}
# The last Python whose wheels exist for what TransformerLens 2.18 allows.
NEWEST = {("numpy", "1"): "3.12", ("pandas", "2"): "3.12"}


def pin(name: str, version: str, requires: str) -> str:
    """One line of the file."""
    markers = []
    lowest = [tuple(map(int, found)) for found in re.findall(r">=\s*(\d+)\.(\d+)", requires)]
    if lowest and max(lowest) > OLDEST:
        markers.append('python_version >= "{}.{}"'.format(*max(lowest)))
    if beyond := NEWEST.get((name, version.split(".")[0])):
        markers.append(f'python_version < "{beyond}"')
    return f"{name}=={version.split('+')[0]}" + (f" ; {' and '.join(markers)}" if markers else "")


found = {
    re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): (d.version, d.metadata.get("Requires-Python") or "")
    for d in distributions()
}
print("# Versions that the tests pass with. Written by constraints/freeze.py; install torch first, by itself.")
print(f"# Frozen on Python {sys.version_info[0]}.{sys.version_info[1]}, {sys.platform}.")
print("\n".join(pin(name, *found[name]) for name in sorted(found) if name not in SKIPPED))
