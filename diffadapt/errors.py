"""The one family of exceptions. Catch `DiffAdaptError` to catch whatever this package refuses.

Every message names the source, the key where there is one, what was seen, what was expected and what to do.
"""

from __future__ import annotations


class DiffAdaptError(Exception):
    """Base of everything this package raises on purpose."""


class SourceError(DiffAdaptError):
    """A source that cannot be found or read: no such file, several adapter files in one repository, a broken file."""


class UnsafeFileError(SourceError):
    """A file that breaks a safety limit or asks for code: a pickle with a foreign global, an oversized header."""


class NotAnAdapterError(SourceError):
    """A readable file that holds no weight adapter: a whole checkpoint, an IP-Adapter, a ControlNet, a web page."""


class DialectError(DiffAdaptError):
    """Keys whose layout no dialect explains, or that contradict each other."""


class AlgorithmError(DiffAdaptError):
    """Tensors of one module that no algorithm explains, or that do not fit together (half a pair, a wrong rank)."""


class NonFiniteError(AlgorithmError):
    """A tensor holds NaN or infinite values."""


class TargetError(DiffAdaptError):
    """An adapter and a pipeline that do not fit: nothing matches, a shape differs, keys left over with strict=True."""


class StackError(DiffAdaptError):
    """A wrong use of the adapter stack: an unknown name, a name taken twice, a scale that names no block."""


class MergeError(DiffAdaptError):
    """Weights that cannot be merged or restored: offloaded, quantised, or changed by somebody else."""


class CombineError(DiffAdaptError):
    """Adapters that cannot be combined as asked: other families, a method that needs the base model, a bad option."""


class RecipeError(DiffAdaptError):
    """A recipe or a prompt's tag that cannot be read or reproduced: malformed, a source missing, a wrong hash."""


class ConvertError(DiffAdaptError):
    """A conversion that was asked for wrongly or came out wrong: options that contradict each other, a result that is
    there already, values that the wanted type of number cannot hold."""


class TrainingError(DiffAdaptError):
    """Training that cannot begin or go on: a wrong setting, nothing to train, mixed dtypes, a loss of NaN."""
