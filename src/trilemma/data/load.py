"""One door to every source: a name, a path, or a path with its format in front."""

import difflib
from pathlib import Path

from .arrays import read_arrays
from .dataset import DataSet
from .digits import digits
from .folder import SUFFIXES, read_folder
from .hub import read_hub
from .idx import read_idx_images

__all__ = ["FORMATS", "load"]

FORMATS = {
    "digits": "1797 real handwritten digits, 8x8 grey, 10 classes, nothing to download",
    "FOLDER": "a folder of images; sub-folders are classes",
    "FILE.npz, FILE.npy": "numpy arrays: images (and labels), uint8 or float",
    "idx:PATH": "IDX files as MNIST's, .gz too: the folder or the images file",
    "hf:NAME[:CONFIG]": 'Hugging Face datasets (pip install "trilemma[datasets]")',
}


def load(
    source: str,
    *,
    split: str = "train",
    resize: int | None = None,
    channels: int | None = None,
    layout: str | None = None,
    value_range: tuple[float, float] | None = None,
    on_error: str = "refuse",
) -> DataSet:
    """Read images from wherever they are.

    Args:
        source: ``"digits"``; a folder of images; a ``.npz`` or ``.npy`` file; ``"idx:PATH"`` for IDX files (recognised
            without the prefix too); ``"hf:NAME"`` for Hugging Face `datasets`.
        split: ``"train"``, ``"test"`` or ``"all"``; what has no division of its own is all training data.
        resize: side in pixels, for folders and ``hf:``.
        channels: 1 or 3, for folders and ``hf:``.
        layout: ``"NCHW"`` or ``"NHWC"``, for arrays.
        value_range: the values that become -1 and 1, for arrays.
        on_error: ``"refuse"`` what cannot be used, or ``"skip"`` it and list it in ``skipped``.

    Returns:
        A data set of at least two images.

    Raises:
        ValueError: the source is not known, an option does not apply to it, or its content cannot be used.
        FileNotFoundError: the path does not exist.
        ImportError: the package that reads this source is not installed.

    >>> load("digits").shape
    (1, 8, 8)
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split={split!r} is not 'train', 'test' or 'all'")
    if on_error not in ("refuse", "skip"):
        raise ValueError(f"on_error={on_error!r} is not 'refuse' or 'skip'")
    given = {"resize": resize, "channels": channels, "layout": layout, "value_range": value_range}

    def only(kind: str, *names: str) -> None:
        stray = [name for name, value in given.items() if value is not None and name not in names]
        if stray:
            raise ValueError(f"{stray[0]}={given[stray[0]]} does not apply to {kind} ({source})")

    prefix, _, rest = source.partition(":")
    path = Path(rest if prefix == "idx" else source)
    if source == "digits":
        only("the digits")
        data = digits(split)
    elif prefix == "hf":
        only("a Hugging Face data set", "resize", "channels")
        data = read_hub(rest, split=split, resize=resize, channels=channels, on_error=on_error)
    elif not path.exists():
        raise _unknown(source, path)
    elif prefix == "idx" or _looks_like_idx(path):
        only("IDX files")
        data = read_idx_images(path, split=split)
    elif path.is_dir():
        only("a folder of images", "resize", "channels")
        if split == "test":
            raise ValueError(f"{path} has no test split; give the folder of the test images, or use DataSet.split")
        data = read_folder(path, resize=resize, channels=channels, on_error=on_error)
    elif path.suffix in (".npz", ".npy"):
        only("arrays", "layout", "value_range")
        data = read_arrays(path, split=split, layout=layout, value_range=value_range, on_error=on_error)
    elif path.suffix.lower() in SUFFIXES:
        raise ValueError(f"{path} is one image; give the folder that holds the images")
    else:
        raise ValueError(f"{path} is no format that is known here; there are: {', '.join(FORMATS)}")
    if len(data) < 2:
        raise ValueError(f"{source} holds {len(data)} image; at least two are needed")
    return data


def _looks_like_idx(path: Path) -> bool:
    if path.is_dir():
        return any("idx3-ubyte" in child.name for child in path.iterdir())
    return "idx3-ubyte" in path.name


def _unknown(source: str, path: Path) -> Exception:
    """The error for a source that is neither a name nor a path, with the nearest of either."""
    if not path.parent.is_dir():
        return FileNotFoundError(f"there is no {path}, nor a folder {path.parent}")
    names = [child.name for child in path.parent.iterdir()]
    names += ["digits"] if path.parent == Path(".") else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else f"; sources: {', '.join(FORMATS)}"
    kind = FileNotFoundError if path.suffix or len(path.parts) > 1 else ValueError
    return kind(f"there is no data source or path {source!r}{hint}")
