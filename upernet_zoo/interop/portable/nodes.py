"""Nodes of an ONNX graph, written down as expressions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["Nodes"]


class Nodes:
    """Collects nodes: `nodes.add("Add", a, b)` writes one down and gives the name of its result. Values are names throughout.

    Args:
        prefix: of all names.
        weights: the graph's: name -> number of the dtype in ONNX, then the shape.

    Attributes:
        made: the nodes, in the order of computation.
    """

    def __init__(self, prefix: str, weights: Mapping[str, Sequence[int]]) -> None:
        self.prefix, self.weights = prefix, weights
        self.made: list[onnx.NodeProto] = []
        self.numbers = itertools.count()
        self.constants: dict[tuple[int | float, ...], str] = {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node of the default domain with one result."""
        import onnx

        name = f"{self.prefix}/{kind}_{next(self.numbers)}"
        self.made.append(onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def ints(self, *values: int) -> str:
        """A constant (n,) int64."""
        if values not in self.constants:
            self.constants[values] = self.add("Constant", value_ints=list(values))
        return self.constants[values]

    def floats(self, *values: float) -> str:
        """A constant (n,) float32."""
        return self.add("Constant", value_floats=list(values))

    def channels(self, weight: str, axis: int = -1) -> int:
        """The length of an axis of a weight."""
        return self.weights[weight][1:][axis]

    def kind(self, weight: str) -> int:
        """The number of a weight's dtype in ONNX."""
        return self.weights[weight][0]

    def cast(self, x: str, kind: int) -> str:
        """A float32 value in a dtype."""
        return x if kind == 1 else self.add("Cast", x, to=kind)

    def size(self, x: str, axis: int) -> str:
        """(1,) int64: the length of an axis."""
        return self.add("Shape", x, start=axis, end=axis + 1)

    def real(self, x: str) -> str:
        """As float32."""
        return self.add("Cast", x, to=1)

    def whole(self, x: str) -> str:
        """As int64."""
        return self.add("Cast", x, to=7)

    def scalar(self, x: str) -> str:
        """(1,) -> ()."""
        return self.add("Squeeze", x, self.ints(0))

    def range(self, first: str, end: str, step: int = 1) -> str:
        """(n,) int64: from `first` (1,) up to `end` (1,)."""
        return self.add("Range", self.scalar(first), self.scalar(end), self.add("Constant", value_int=step))

    def joined(self, *shape: str) -> str:
        """Values (n,) one after the other."""
        return self.add("Concat", *shape, axis=0)

    def reshaped(self, x: str, *shape: str) -> str:
        """In the shape of the values (n,) one after the other."""
        return self.add("Reshape", x, self.joined(*shape))

    def ceil_div(self, x: str, y: str) -> str:
        """Of whole numbers, the first not negative."""
        return self.add("Div", self.add("Sub", self.add("Add", x, y), self.ints(1)), y)

    def loop(self, count: str, body: Callable[[Nodes, str], str], rank: int) -> str:
        """What `body(nodes, index)` writes down for each index (1,) below `count` (1,), along a new first axis; of `rank` axes each."""
        import onnx

        helper, inner = onnx.helper, Nodes(f"{self.prefix}/{next(self.numbers)}", self.weights)
        index, condition, kept = (f"{inner.prefix}/{name}" for name in ("index", "condition", "kept"))
        result = body(inner, inner.add("Unsqueeze", index, inner.ints(0)))
        inner.made.append(helper.make_node("Identity", [condition], [kept]))
        inputs = [helper.make_tensor_value_info(index, 7, []), helper.make_tensor_value_info(condition, 9, [])]
        outputs = [helper.make_tensor_value_info(kept, 9, []), helper.make_tensor_value_info(result, 1, [None] * rank)]
        return self.add("Loop", self.scalar(count), "", body=helper.make_graph(inner.made, inner.prefix, inputs, outputs))
