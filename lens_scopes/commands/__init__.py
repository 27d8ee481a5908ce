"""The command line, ``lens-scopes``: each command is a thin layer over one function of the package."""
