"""Every error that vidsieve raises on purpose.

VidsieveError
├── UnsupportedModel    (TypeError)     no adapter knows this model type
├── UnsupportedCall     (ValueError)    a call on an attached model that could only give a wrong answer
├── UnsupportedVersion  (RuntimeError)  a release of transformers whose names are not those that vidsieve knows
├── BudgetError         (ValueError)    a budget that cannot be met
├── NonFiniteFeatures   (ValueError)    NaN, inf or what float32 cannot square among the tokens of video or prompt
├── KernelUnavailable   (RuntimeError)  an implementation was asked for that cannot run here
├── VideoError          (OSError)       a file that cannot be read as a video
├── AlreadyAttached     (RuntimeError)  a second reducer on a model that has one
├── WrongArgument       (TypeError)     something of another kind than what was expected
├── UnknownMethod       (ValueError)    no method has this name
└── MissingExtra        (ImportError)   an optional dependency is not installed

Each also derives from the built-in in brackets, so code that knows nothing of vidsieve still catches it.
A message says what was expected, what was found, and what to do.
"""

import re

# An address: scheme, user and password, host and path, query. What follows a colon and is no port is a password, which
# people also write with characters that would end it.
_ADDRESS = re.compile(
    r"([a-z][a-z0-9+.-]*://)(?:[^\s/?#]*@|[^\s/?#@:\[]*:(?!\d+[/?#])\S*@)?([^\s?#]*)"
    r"(?:[?#]\S*?(?=['\")\];,.:]*(?:\s|$)))?",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Leave user, password, query and fragment out of the addresses in a text: what is shown or stored is passed on."""
    return _ADDRESS.sub(r"\1\2", text)


class VidsieveError(Exception):
    """Base of every error that vidsieve raises on purpose."""


class UnsupportedModel(VidsieveError, TypeError):
    """No adapter knows this model type."""


class UnsupportedCall(VidsieveError, ValueError):
    """A call on an attached model that could only give a wrong answer."""


class UnsupportedVersion(VidsieveError, RuntimeError):
    """A release of transformers whose names are not those that vidsieve knows."""


class BudgetError(VidsieveError, ValueError):
    """A token budget that cannot be met."""


class NonFiniteFeatures(VidsieveError, ValueError):
    """NaN, inf or what float32 cannot square among the tokens of the video or the prompt."""


class KernelUnavailable(VidsieveError, RuntimeError):
    """An implementation was asked for that cannot run here."""


class VideoError(VidsieveError, OSError):
    """A file that cannot be read as a video."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class AlreadyAttached(VidsieveError, RuntimeError):
    """A second reducer on a model that already has one."""


class WrongArgument(VidsieveError, TypeError):
    """Something of another kind than what was expected."""


class UnknownMethod(VidsieveError, ValueError):
    """No method has this name."""


class MissingExtra(VidsieveError, ImportError):
    """An optional dependency is not installed."""
