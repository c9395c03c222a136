"""The command line: one module a verb, each a dataclass of settings and a ``run``."""
