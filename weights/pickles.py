"""A pickle of torch.save, followed without making what it describes: what it would run, and how large its tensors are.

torch.load(weights_only=True) runs no code, but takes sizes as they come: a few bytes can ask for a tensor of any size.
`inspect` follows the same instructions with stand-ins, and refuses what does not fit into the file. Only then is the
file loaded.
"""

import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch

from weights.errors import show, show_name

MOST = 1_000_000  # instructions; a model of 1500 tensors has 60,000
AXES = 64
REPEATED, SPARE = 4, 2**24  # of a file's tensors: at most so many times its bytes (tied ones count twice), and so many
ITEM_BYTES = {
    **{"Untyped": 1, "Byte": 1, "Char": 1, "Bool": 1, "QInt8": 1, "QUInt8": 1, "QUInt4x2": 1, "QUInt2x4": 1},
    **{"Half": 2, "BFloat16": 2, "Short": 2, "Float": 4, "Int": 4, "QInt32": 4},
    **{"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16},
}
ENCODINGS = ("latin1", "latin-1", "ascii", "utf-8", "utf8")


class BadPickle(ValueError):
    """Why a pickle is refused."""


class Bytes(Protocol):
    """What instructions are read from: a file, or its memory map."""

    def read(self, n: int = ..., /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class Global:
    """A function or class, by its name."""

    name: str


@dataclass(frozen=True)
class Storage:
    key: str
    items: int
    item_bytes: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.items * self.item_bytes


@dataclass
class Array:
    """A tensor that a storage holds; `name` is the key by which a dict has it."""

    storage: Storage
    name: str | None = None


@dataclass(frozen=True)
class Odd:
    """Anything else that was made by calling something."""

    maker: str


@dataclass
class Contents:
    """What a pickle describes."""

    value: Any = None
    foreign: set[str] = field(default_factory=set)  # names of what is neither a tensor's nor a container's
    storages: dict[str, Storage] = field(default_factory=dict)  # by key
    arrays: list[Array] = field(default_factory=list)
    size: int = 0  # bytes of the tensors together


def inspect(file: Bytes, file_size: int) -> Contents:
    """Follow the pickle at a file's position to its end. `file_size`: bytes of the whole file. Raises BadPickle."""
    machine = _Machine(Contents(), file_size)
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(cast(Any, file)):
            machine.step(opcode.name, argument)
            count += 1
            if count > MOST:
                raise BadPickle(f"more than {MOST} instructions")
        machine.contents.value = machine.stack.pop()
    except BadPickle:
        raise
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError):
        raise BadPickle("not a pickle of tensors") from None
    return machine.contents


class _Machine:
    """The instructions that torch's own unpickler knows, on stand-ins."""

    def __init__(self, contents: Contents, file_size: int):
        self.contents, self.file_size, self.budget = contents, file_size, REPEATED * file_size + SPARE
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in VALUES:
            self.stack.append(argument)
        elif name in TUPLES:
            count = TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("PROTO", "STOP"):
            return
        elif name not in STEPS:
            raise BadPickle(f"the instruction {name}, which torch.save does not write")
        else:
            STEPS[name](self, argument)

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def make_tuple(self, _: Any) -> None:
        items = self.marked()
        self.stack.append(tuple(items))

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def appends(self, _: Any) -> None:
        items = self.marked()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if type(self.stack[-1]) is not list:
            raise BadPickle("it appends to what is not a list")
        return self.stack[-1]

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        items = self.marked()
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, Odd):  # an object of a class that is refused by name
            return
        if type(into) is not dict:
            raise BadPickle("it sets items of what is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[_key(key)] = value
            if isinstance(value, Array) and isinstance(key, str) and value.name is None:
                value.name = key

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def find(self, names: str) -> None:
        module, name = names.split(" ", 1)
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if not _is_known(full):
            self.contents.foreign.add(full)
        self.stack.append(Global(full))

    def persistent(self, _: Any) -> None:
        """("storage", its type, its key, its device, its items), and in the format before zip a view's place."""
        kind, made, key, _, items, *view = self.stack.pop()
        if kind != "storage" or not isinstance(made, Global) or not isinstance(key, str) or view not in ([], [None]):
            raise BadPickle("it refers to what is not a storage")
        name = made.name.rpartition(".")[2].removesuffix("Storage")
        if name not in ITEM_BYTES or not _is_size(items):
            raise BadPickle(f"a storage of {show(items)} items of {show_name(made.name)}")
        storage = Storage(key, items, ITEM_BYTES[name])
        if storage.size > self.file_size:
            raise BadPickle(f"a storage of {storage.size} bytes is not in it")
        if self.contents.storages.setdefault(key, storage) != storage:
            raise BadPickle(f"storage {show_name(key)} has two sizes")
        self.stack.append(storage)

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, arguments))

    def call(self, function: Any, arguments: Any) -> Any:
        """What a function makes of its arguments."""
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise BadPickle("it calls what is not a function")
        if function.name in self.contents.foreign:
            return Odd(function.name)
        if function.name not in CALLS:
            raise BadPickle(f"it calls {show_name(function.name)}, which makes no plain tensor")
        return CALLS[function.name](self, *arguments)

    def new(self, _: Any) -> None:
        self.stack.pop()
        made = self.stack.pop()
        if not isinstance(made, Global) or made.name not in self.contents.foreign:
            raise BadPickle(f"it makes an object of {show_name(made.name) if isinstance(made, Global) else 'no class'}")
        self.stack.append(Odd(made.name))

    def build(self, _: Any) -> None:
        """The attributes of an object: of an OrderedDict, nn.Module's `_metadata`, or others that hide no method."""
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, Odd) and instance.maker in self.contents.foreign:
            return
        if type(instance) is not dict or type(state) is not dict or any(hasattr(OrderedDict, str(k)) for k in state):
            raise BadPickle("it changes an object that is no dict of tensors")

    def array(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Array:
        """A tensor, whose every item lies in its storage."""
        if not isinstance(storage, Storage) or not (type(shape) is type(strides) is tuple):
            raise BadPickle("a tensor without a storage")
        item_bytes = _item_bytes(rest[2]) if len(rest) > 2 and isinstance(rest[2], Global) else storage.item_bytes
        if len(shape) != len(strides) or len(shape) > AXES or not all(map(_is_size, (offset, *shape, *strides))):
            raise BadPickle(f"a tensor {show(shape)} with strides {show(strides)}")
        items = math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if items and (last + 1) * item_bytes > storage.size:
            raise BadPickle(f"a tensor {show(list(shape))} goes beyond its storage of {storage.size} bytes")
        self.contents.size += items * item_bytes
        if self.contents.size > self.budget:
            raise BadPickle(f"its tensors are more than {self.budget} bytes: the same values, many times")
        self.contents.arrays.append(Array(storage))
        return self.contents.arrays[-1]

    def parameter(self, array: Any, *_: Any) -> Any:
        if not isinstance(array, Array | Odd):
            raise BadPickle("a parameter that is no tensor")
        return array

    def typed(self, function: Any, _: Any, arguments: Any, *__: Any) -> Any:
        """A tensor with attributes, or of a class of its own."""
        return self.call(function, arguments)

    def make_dict(self, items: Any = ()) -> dict[Any, Any]:
        return {_key(key): value for key, value in (items.items() if type(items) is dict else items)}

    def make_set(self, items: Any) -> Odd:
        for item in items:
            _key(item)
        return Odd("set")

    def encode(self, text: Any, encoding: Any = "utf-8") -> bytes:
        if not isinstance(text, str) or encoding not in ENCODINGS:
            raise BadPickle(f"text in the encoding {show(encoding)}")
        return text.encode(encoding)

    def plain(self, *arguments: Any) -> Odd:
        """Something small: what it is made of is in the file, and numbers are no sizes."""
        return Odd("plain")

    def make_bytes(self, *arguments: Any) -> Odd:
        if not all(isinstance(argument, (bytes, str)) for argument in arguments):
            raise BadPickle("bytes that are not in the file")
        return Odd("bytearray")

    def make_shape(self, lengths: Any) -> tuple[int, ...]:
        if not all(map(_is_size, lengths)):
            raise BadPickle(f"a shape {show(lengths)}")
        return tuple(lengths)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _key(key: Any) -> Any:
    """A key of a dict. Nested ones are refused: finding a hash can take forever."""
    flat = key if type(key) is tuple else (key,)
    if not all(item is None or type(item) in (str, bytes, int, float, bool) for item in flat):
        raise BadPickle("a dict's key that is neither text nor a number")
    return key


def _item_bytes(dtype: Global) -> int:
    found = getattr(torch, dtype.name.rpartition(".")[2], None)
    if not isinstance(found, torch.dtype):
        raise BadPickle(f"the dtype {show_name(dtype.name)}")
    return found.itemsize


def _is_known(name: str) -> bool:
    """Whether torch.load takes a function or class to be safe: it belongs to tensors and containers."""
    if name in CALLS or name in UNCALLED:
        return True
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage") and last.removesuffix("Storage") in ITEM_BYTES:
        return last.endswith("Storage")
    return module == "torch" and isinstance(getattr(torch, last, None), torch.dtype)


UNCALLED = {
    "torch.Tensor", "torch.nn.parameter.Parameter", "torch.storage.TypedStorage",
    "torch._utils._rebuild_qtensor", "torch._utils._rebuild_nested_tensor", "torch._utils._rebuild_wrapper_subclass",
    "torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    *(f"{module}{kind}Tensor" for module in ("torch.", "torch.cuda.", "torch.sparse.", "torch.cuda.sparse.")
      for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")),
}  # fmt: skip
CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
VALUES = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark, "TUPLE": _Machine.make_tuple, "APPEND": _Machine.append, "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get, "LONG_BINGET": _Machine.get, "GLOBAL": _Machine.find, "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce, "NEWOBJ": _Machine.new, "BUILD": _Machine.build,
}  # fmt: skip
CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _Machine.array,
    "torch._utils._rebuild_tensor_v2": _Machine.array,
    "torch._utils._rebuild_tensor_v3": _Machine.array,
    "torch._utils._rebuild_parameter": _Machine.parameter,
    "torch._utils._rebuild_parameter_with_state": _Machine.parameter,
    "torch._tensor._rebuild_from_type_v2": _Machine.typed,
    "torch._utils._rebuild_sparse_tensor": _Machine.plain,
    "torch._utils._rebuild_meta_tensor_no_storage": _Machine.plain,
    "torch.serialization._get_layout": _Machine.plain,
    "torch.device": _Machine.plain,
    "torch.Size": _Machine.make_shape,
    "collections.OrderedDict": _Machine.make_dict,
    "collections.Counter": _Machine.make_dict,
    "builtins.set": _Machine.make_set,
    "builtins.complex": _Machine.plain,
    "builtins.bytearray": _Machine.make_bytes,
    "_codecs.encode": _Machine.encode,
}
