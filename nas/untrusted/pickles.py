"""Checks pickles from untrusted sources before torch unpickles them. Runs and makes nothing of what they describe.

torch's own unpickler calls only functions that it lists. But a pickle of a thousand bytes can nest tuples so that
hashing one never ends, and one of a hundred thousand bytes can copy a large object until the memory is full.
"""

import io
import pickle
import pickletools
import re
from typing import Any

# What torch.save writes for tensors and plain values, as module and name.
NAMES = re.compile(
    r"torch\._utils (_rebuild_tensor_v2|_rebuild_tensor_v3|_rebuild_parameter)|collections OrderedDict|_codecs encode|"
    r"torch (\w+Storage|Size|device|b?float\w+|u?int\d+|complex\d+|bool)|torch\.storage UntypedStorage"
)
# The same, and the Counter that schedules of learning rates keep, for files that other programs wrote.
NAMES_OF_OTHERS = re.compile(f"{NAMES.pattern}|collections Counter")
CALLED = re.compile(r"torch\._utils \w+|collections (OrderedDict|Counter)|_codecs encode|torch (Size|device)")
COUNTED = 20  # values for each entry of a dict that is copied
ARGUMENTS = 10  # of functions, for each value that is allowed; a tensor needs about 15
MARKS = 1000  # that are open at a time; one for each level of a state
PARTS = 8  # of a tuple that are known; functions are called with no more

# What is known of an object that would be made: a text itself, or its kind, the number of values in it, each counted as
# often as it is met, and details. Plain tuples, because a class would take twice the time.
Item = Any
LEAF = ("leaf", 1, None)
MADE: dict[str, Item] = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), LEAF),
    "EMPTY_LIST": ("list", 1, None),
}
LENGTHS = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
FILLS = frozenset({"BINPUT", "LONG_BINPUT"})
# Instructions of a single byte that make an object. Counting them takes a hundredth of the time of following them.
SMALL = b"]}(\x85\x86\x87"


def check(content: bytes, *, values: int, names: re.Pattern[str] = NAMES) -> None:
    """Raises UnpicklingError for a pickle with anything that torch.save does not write.

    values: the largest number of lists, of dicts and of tuples of one length, and of values in one tuple. The time and
    the memory that unpickling takes are then in proportion to the pickle's size. names: that may be in it.
    """
    if any(content.count(instruction) > values for instruction in SMALL):
        raise pickle.UnpicklingError(f"it has more than {values} values")
    check_next(io.BytesIO(content), values=values, names=names)


def check_next(stream: io.BytesIO, *, values: int, names: re.Pattern[str] = NAMES) -> None:
    """Reads one pickle of a stream of several, up to its end. See `check`."""
    checked = _Checked(values, names)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if (name := opcode.name) in FILLS:
                checked.memo[argument] = checked.stack[-1]
            else:
                checked.step(name, argument)
                checked.last = name
    except (IndexError, KeyError) as error:  # of a stack or a memo that lacks what is taken from it
        raise pickle.UnpicklingError("a malformed pickle") from error


class _Checked:
    """Follows a pickle's instructions as torch's unpickler does, with an `Item` in place of each object."""

    def __init__(self, values: int, names: re.Pattern[str]) -> None:
        self.values, self.names = values, names
        self.left = {"containers": values, "arguments": ARGUMENTS * values}
        self.encoded, self.texts = 0, 0  # characters
        self.stack: list[Item] = []
        self.below: list[list[Item]] = []  # the stacks below the marks
        self.memo: dict[Any, Item] = {}
        self.last = ""  # the name of the instruction before, but for those that fill the memo

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if (made := MADE.get(name)) is not None:
            if made is not LEAF:
                self.take("containers")
            stack.append(made)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "EMPTY_DICT":
            self.take("containers")
            stack.append(("dict", 1, [0]))  # and the number of its entries
        elif name == "MARK":
            if len(self.below) == MARKS:
                raise pickle.UnpicklingError("it is nested too deeply")
            self.below.append(stack)
            self.stack = []
        elif name == "TUPLE":
            self.make_tuple(self.taken_to_mark())
        elif (length := LENGTHS.get(name)) is not None:
            self.make_tuple([stack.pop() for _ in range(length)][::-1])
        elif name == "BINUNICODE":
            self.texts += len(argument)
            stack.append(argument)
        elif name == "REDUCE":
            self.call(arguments=stack.pop(), function=stack.pop())
        elif name == "BINPERSID":
            self.check_storage(stack.pop())
            stack.append(("storage", 1, None))
        elif name in ("SETITEM", "SETITEMS"):
            self.check_keys([stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self.taken_to_mark())
        elif name == "GLOBAL":
            if not self.names.fullmatch(argument):
                raise pickle.UnpicklingError(f"it names {argument[:60]}")
            stack.append(("global", 1, argument))
        elif name in ("APPEND", "APPENDS"):
            stack.pop() if name == "APPEND" else self.taken_to_mark()
        elif name == "BUILD":
            stack.pop()
            if kind(stack[-1]) != "collections OrderedDict":
                raise pickle.UnpicklingError("it changes objects")
        elif name not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"it has the instruction {name}")

    def take(self, what: str, count: int = 1) -> None:
        self.left[what] -= count
        if self.left[what] < 0:
            raise pickle.UnpicklingError(f"it has too many {what}")

    def taken_to_mark(self) -> list[Item]:
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def make_tuple(self, parts: list[Item]) -> None:
        size = 1 + sum([1 if type(part) is str else part[1] for part in parts])
        if size > self.values:
            raise pickle.UnpicklingError(f"it has a tuple of more than {self.values} values")
        self.stack.append(("tuple", size, parts if len(parts) <= PARTS else []))

    def check_keys(self, pairs: list[Item]) -> None:
        if any(kind(key) not in ("leaf", "text") for key in pairs[::2]):
            raise pickle.UnpicklingError("it has keys that are no texts")
        if kind(self.stack[-1]) == "dict":
            self.stack[-1][2][0] += len(pairs) // 2

    def check_storage(self, known_as: Item) -> None:
        # A text, the type, the key, the place, the size, and in old files a view.
        kinds = [*map(kind, known_as[2])] if kind(known_as) == "tuple" else []
        if kinds[:5] != ["text", "global", "text", "text", "leaf"] or kinds[5:] not in ([], ["leaf"]):
            raise pickle.UnpicklingError("it names something that is no storage")

    def call(self, *, arguments: Item, function: Item) -> None:
        # The same arguments again and again would make many objects of few bytes.
        fresh = self.last in LENGTHS or self.last == "TUPLE"
        if not fresh or kind(function) != "global" or not CALLED.fullmatch(function[2]):
            raise pickle.UnpicklingError("it calls something in a way that torch.save does not write")
        _, size, parts = arguments
        name = function[2]
        self.take("arguments", size)
        if name == "collections OrderedDict" and size > 1:
            raise pickle.UnpicklingError("it copies dicts")
        if name == "collections Counter":
            if [*map(kind, parts)] != ["dict"]:
                raise pickle.UnpicklingError("it counts something else than pickle does")
            self.take("arguments", COUNTED * parts[0][2][0])
        if name == "_codecs encode":
            self.check_encoded(parts)
        self.stack.append((name, 1, None))

    def check_encoded(self, arguments: list[Item]) -> None:
        """Raises UnpicklingError unless a text is encoded as pickle writes bytes: in Latin-1, each text once.

        Other codecs are modules to be imported, and of some the time grows with the square of the text.
        """
        if [*map(kind, arguments)] != ["text", "text"] or arguments[1] != "latin1":
            raise pickle.UnpicklingError("it encodes a text in another way than pickle does")
        self.encoded += len(arguments[0])
        if self.encoded > self.texts:
            raise pickle.UnpicklingError("it encodes texts many times")


def kind(item: Item) -> str:
    return "text" if type(item) is str else item[0]
