"""The configuration, as the package gooddrag.conf."""
