"""Optional dependencies: imported where they are used, missing ones named in one sentence."""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: dotted name, for example ``"PIL.Image"``.
        extra: the extra of this package that installs it, for example ``"data"``.

    Raises:
        ImportError: the module is not installed.

    >>> require("json", extra="data").dumps([1])
    '[1]'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise  # the module is there but something that it needs is broken: show that
        top = module.split(".")[0]
        raise ImportError(
            f'{top} is needed here and not installed; get it with: pip install "trilemma[{extra}]"'
        ) from None
