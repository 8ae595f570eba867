"""The tests; `check` checks jaxtyping annotations while they run (pyproject.toml, addopts)."""

from beartype import BeartypeConf, beartype

# an int may stand where a float is expected, as for mypy
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
