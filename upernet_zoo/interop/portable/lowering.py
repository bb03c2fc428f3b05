"""The opaque operators of `head` in ordinary ones of ONNX.

Maps go piece by piece through a `Loop`: transforms of a whole map would need more memory than the plain model, and resize matrices of
whole rows would grow with the square of the picture's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .head import DOMAIN
from .nodes import Nodes

if TYPE_CHECKING:
    import onnx

__all__ = ["lower"]

# Winograd tiles, 4x4 pixels each, of a piece, and in a row of it: a map of 128x128 pixels is two pieces. Narrow ones
# have small resize matrices, and high ones share few rows of the coarser maps; more tiles at once are no faster, and take more memory
_TILES, _ACROSS = 512, 16


def lower(model: onnx.ModelProto) -> None:
    """Replace the operators, in place."""
    weights = {weight.name: (weight.data_type, *weight.dims) for weight in model.graph.initializer}
    lowered = []
    for node in model.graph.node:
        if node.domain != DOMAIN:
            lowered.append(node)
            continue
        nodes = Nodes(node.name or node.output[0], weights)
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        result = _LOWERED[node.op_type](nodes, node.input, **attributes)
        for made in nodes.made:
            made.output[:] = [node.output[0] if name == result else name for name in made.output]
        lowered += nodes.made
    del model.graph.node[:]
    model.graph.node.extend(lowered)
    kept = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _lower_winograd(nodes: Nodes, inputs: Sequence[str]) -> str:
    x, weight, bias, before, after = inputs

    def convolve(inner: Nodes, piece: _Piece) -> str:
        return inner.add("Add", _winograd(inner, piece.surrounded(inner, x), piece, (weight, before, after)), bias)

    return _in_pieces(nodes, x, convolve, across=False)


def _lower_fuse(nodes: Nodes, inputs: Sequence[str], align_corners: int, maps: int) -> str:
    x, weight, bias, before, after, *rest = inputs
    classifier, rest = rest[: len(rest) - 4 * maps], rest[len(rest) - 4 * maps :]

    def fuse(inner: Nodes, piece: _Piece) -> str:
        own = _winograd(inner, piece.surrounded(inner, x), piece, (weight, before, after))
        out = inner.add("Relu", inner.add("Add", own, _resized_sum(inner, rest[:maps], rest[maps:], piece, align_corners, bias)))
        return inner.add("Add", inner.add("MatMul", out, classifier[0]), classifier[1]) if classifier else out

    return _in_pieces(nodes, x, fuse, across=True)


def _lower_resized_sum(nodes: Nodes, inputs: Sequence[str], align_corners: int) -> str:
    like, *rest = inputs
    maps = len(rest) // 4
    height, width = (nodes.size(like, axis) for axis in (1, 2))
    zero = nodes.ints(0)
    whole = _Piece(zero, nodes.size(like, 0), zero, zero, height, width, height, width)
    return _resized_sum(nodes, rest[:maps], rest[maps:], whole, align_corners)


_LOWERED: dict[str, Callable[..., str]] = {"Winograd": _lower_winograd, "Fuse": _lower_fuse, "ResizedSum": _lower_resized_sum}


@dataclass(frozen=True)
class _Piece:
    """A part of a map (N, height, width, C); all are names of (1,) int64.

    It has the pictures from `first` to `first + count`, their rows from `top` to `top + rows` and columns from `left` to `left + columns`.
    """

    first: str
    count: str
    top: str
    left: str
    rows: str
    columns: str
    height: str
    width: str

    def surrounded(self, nodes: Nodes, x: str) -> str:
        """The piece of x and a pixel around it, zeros beyond the map."""
        one, two = nodes.ints(1), nodes.ints(2)
        starts = self.first, nodes.add("Sub", self.top, one), nodes.add("Sub", self.left, one)
        return _cut(nodes, x, starts, (self.count, nodes.add("Add", self.rows, two), nodes.add("Add", self.columns, two)))


def _cut(nodes: Nodes, x: str, starts: Sequence[str], lengths: Sequence[str]) -> str:
    """So much of x (N, H, W, C) from `starts` on, of each but the last axis; zeros where x is not. One Pad, whose negative numbers cut."""
    before = [nodes.add("Neg", start) for start in starts]
    ends = [nodes.add("Add", start, length) for start, length in zip(starts, lengths)]
    after = [nodes.add("Sub", end, nodes.size(x, axis)) for axis, end in enumerate(ends)]
    zero = nodes.ints(0)
    return nodes.add("Pad", x, nodes.joined(*before, zero, *after, zero))


def _in_pieces(nodes: Nodes, x: str, compute: Callable[[Nodes, _Piece], str], across: bool) -> str:
    """A map like x (N, H, W, *), piece by piece: of one picture, or of several where they are small, so that weights are read less often.

    Args:
        nodes: where it is written down.
        x: the map.
        compute: gives (count, rows, columns, *) of a piece, also beyond the map and behind the last picture.
        across: whether pieces are cut across their width too.
    """
    count, height, width = (nodes.size(x, axis) for axis in range(3))
    four, one, zero, rest = nodes.ints(4), nodes.ints(1), nodes.ints(0), nodes.ints(-1)

    def parts(length: str, most: str) -> tuple[str, str]:
        """Into how many nearly equal parts of at most `most` a length is cut, and how long they are."""
        part = nodes.ceil_div(length, nodes.ceil_div(length, most))
        return nodes.ceil_div(length, part), part

    across_tiles = nodes.ceil_div(width, four)
    beside, tile_columns = parts(across_tiles, nodes.ints(_ACROSS)) if across else (one, across_tiles)
    most_rows = nodes.add("Max", nodes.add("Div", nodes.ints(_TILES), tile_columns), one)
    below, tile_rows = parts(nodes.ceil_div(height, four), most_rows)
    most_pictures = nodes.add("Max", nodes.add("Div", nodes.ints(_TILES), nodes.add("Mul", tile_rows, tile_columns)), one)
    groups, together = parts(count, most_pictures)
    rows, columns = nodes.add("Mul", tile_rows, four), nodes.add("Mul", tile_columns, four)
    pieces = nodes.add("Mul", below, beside)  # of a group of pictures

    def body(inner: Nodes, index: str) -> str:
        group = inner.add("Div", index, pieces)
        within = inner.add("Sub", index, inner.add("Mul", group, pieces))
        row = inner.add("Div", within, beside)
        column = inner.add("Sub", within, inner.add("Mul", row, beside))
        first, top, left = (inner.add("Mul", *factors) for factors in ((group, together), (row, rows), (column, columns)))
        return compute(inner, _Piece(first, together, top, left, rows, columns, height, width))

    out = nodes.loop(nodes.add("Mul", groups, pieces), body, rank=4)
    if across:
        out = nodes.reshaped(out, groups, below, beside, together, rows, columns, rest)
        out = nodes.add("Transpose", out, perm=[0, 3, 1, 4, 2, 5, 6])
    # Without parts beside each other nothing has to be moved: of bands there is one, or each has more than half of _TILES, and a piece then
    # has one picture.
    sides = nodes.add("Mul", below, rows), nodes.add("Mul", beside, columns)
    out = nodes.reshaped(out, nodes.add("Mul", groups, together), *sides, rest)
    return nodes.add("Slice", out, nodes.joined(zero, zero, zero), nodes.joined(count, height, width), nodes.ints(0, 1, 2))


def _winograd(nodes: Nodes, x: str, piece: _Piece, tensors: Sequence[str]) -> str:
    """`head.Winograd` of a piece with a pixel around it, (count, rows + 2, columns + 2, C) -> (count, rows, columns, C'); no bias."""
    weight, before, after = tensors
    channels, out_channels = nodes.channels(weight, 1), nodes.ints(nodes.channels(weight))
    four, all_left, two = nodes.ints(4), nodes.ints(36, -1), nodes.ints(2)
    high, wide = (nodes.add("Add", side, two) for side in (piece.rows, piece.columns))

    def every(end: str, step: int, *axes: int) -> str:
        return nodes.add("Unsqueeze", nodes.range(nodes.ints(0), end, step), nodes.ints(*axes))

    # the pixel of each position in the tiles, (36, N, down, across): one copy, where 36 slices that are joined are two
    corners = nodes.add("Add", nodes.add("Mul", every(piece.count, 1, 1, 2), high), every(piece.rows, 4, 0, 2))
    corners = nodes.add("Add", nodes.add("Mul", corners, wide), every(piece.columns, 4, 0, 1))
    within = nodes.add("Add", nodes.add("Mul", nodes.ints(*(i for i in range(6) for _ in range(6))), wide), nodes.ints(*list(range(6)) * 6))
    index = nodes.add("Add", nodes.add("Reshape", within, nodes.ints(36, 1, 1, 1)), corners)
    places = nodes.add("Gather", nodes.add("Reshape", x, nodes.ints(-1, channels)), index, axis=0)
    tiles = nodes.add("MatMul", before, nodes.add("Reshape", places, all_left))
    products = nodes.add("MatMul", nodes.add("Reshape", tiles, nodes.ints(36, -1, channels)), weight)
    out = nodes.add("MatMul", after, nodes.add("Reshape", products, all_left))
    down, across = (nodes.add("Div", side, four) for side in (piece.rows, piece.columns))
    out = nodes.reshaped(out, four, four, piece.count, down, across, out_channels)
    out = nodes.add("Transpose", out, perm=[2, 3, 0, 4, 1, 5])
    return nodes.reshaped(out, piece.count, piece.rows, piece.columns, out_channels)


def _resized_sum(
    nodes: Nodes, maps: Sequence[str], weights: Sequence[str], piece: _Piece, align_corners: int, bias: str | None = None
) -> str:
    """`head.ResizedSum` of a piece, and a bias (C,): (count, rows, columns, C). `weights` has three for each map."""
    rows, down = [], []
    columns, count = piece.columns, piece.count
    for i, x in enumerate(maps):
        parts = weights[3 * i : 3 * i + 3]
        channels, kind = nodes.ints(nodes.channels(parts[0]) // 3), nodes.kind(parts[0])
        top, height, vertical = _span(nodes, nodes.size(x, 1), piece.top, piece.rows, piece.height, align_corners)
        vertical = nodes.add("Transpose", nodes.cast(vertical, kind), perm=[0, 2, 1])
        down.append(nodes.reshaped(vertical, piece.rows, nodes.ints(-1)))
        left, width, horizontal = _span(nodes, nodes.size(x, 2), piece.left, columns, piece.width, align_corners)
        horizontal = nodes.reshaped(nodes.cast(horizontal, kind), columns, nodes.ints(-1))
        needed = _cut(nodes, x, (piece.first, top, left), (count, height, width))
        shape = nodes.joined(count, height, nodes.add("Mul", width, nodes.ints(3)), channels)
        for part in parts:  # one for each ky
            resized = nodes.add("MatMul", horizontal, nodes.add("Reshape", nodes.add("MatMul", needed, part), shape))
            rows.append(nodes.reshaped(resized, count, height, nodes.ints(-1)))
    if bias is not None:  # a row of it, which is added to every row
        row = nodes.add("Expand", bias, nodes.joined(count, nodes.ints(1), columns, channels))
        rows.append(nodes.reshaped(row, count, nodes.ints(1), nodes.ints(-1)))
        down.append(nodes.add("Expand", nodes.floats(1.0), nodes.joined(piece.rows, nodes.ints(1))))
    out = nodes.add("MatMul", nodes.add("Concat", *down, axis=1), nodes.add("Concat", *rows, axis=1))
    return nodes.reshaped(out, count, piece.rows, columns, channels)


def _span(nodes: Nodes, size: str, first: str, length: str, out_size: str, align_corners: int) -> tuple[str, str, str]:
    """What pixels `first` to `first + length` of an axis of `out_size` need of an axis of `size`.

    Returns:
        The first input pixel, how many there are, and of these the matrix of `head.resize_taps`, (length, how many, 3).
    """
    one, nothing = nodes.floats(1.0), nodes.floats(0.0)
    real_size, real_out = nodes.real(size), nodes.real(out_size)
    last, out_last = nodes.add("Sub", real_size, one), nodes.add("Sub", real_out, one)
    ratio = nodes.add("Div", last, nodes.add("Max", out_last, one)) if align_corners else nodes.add("Div", real_size, real_out)
    # of whole numbers: where the size is fixed, ONNX's shape inference takes cast ones for whole ones, and refuses the mixture
    place = nodes.real(nodes.range(first, nodes.add("Add", first, length)))
    place = nodes.add("Add", nodes.add("Unsqueeze", place, nodes.ints(1)), nodes.floats(-1.0, 0.0, 1.0))

    def source(i: str) -> str:
        if align_corners:
            at = nodes.add("Mul", i, ratio)
        else:
            half = nodes.floats(0.5)
            at = nodes.add("Sub", nodes.add("Mul", nodes.add("Add", i, half), ratio), half)
        return nodes.add("Min", nodes.add("Max", at, nothing), last)

    reach = nodes.add("Mul", nodes.real(nodes.add("Add", length, nodes.ints(1))), ratio)
    # the pixel before the first place, and the one behind the last
    count = nodes.add("Min", nodes.add("Add", nodes.whole(nodes.add("Ceil", reach)), nodes.ints(2)), size)
    low = nodes.whole(nodes.add("Floor", source(nodes.add("Sub", nodes.real(first), one))))
    low = nodes.add("Min", low, nodes.add("Sub", size, count))
    inputs = nodes.real(nodes.range(low, nodes.add("Add", low, count)))
    inputs = nodes.add("Reshape", inputs, nodes.ints(1, -1, 1))
    distance = nodes.add("Abs", nodes.add("Sub", nodes.add("Unsqueeze", source(place), nodes.ints(1)), inputs))
    matrix = nodes.add("Relu", nodes.add("Sub", one, distance))
    inside = nodes.add("And", nodes.add("GreaterOrEqual", place, nothing), nodes.add("LessOrEqual", place, out_last))
    return low, count, nodes.add("Mul", matrix, nodes.add("Unsqueeze", nodes.real(inside), nodes.ints(1)))
