"""The parts of an ONNX graph around the hash model: pixels made ready before it, bits packed behind it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax_brcd.encoder import HashEncoder
from jax_brcd.models.variants import Preprocessing
from jax_brcd.runtime.errors import InputError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OPSET = 18
IMAGES, IMAGE, ROWS, LOGITS, CODES = "images", "image", "rows", "logits", "codes"
PIXELS = "pixels"  # what the hash model takes: normalised planes (batch, 3, size, size), or rows
LARGEST = 2**31 - 2**20  # bytes of a file, less some room: one of ONNX holds less than 2 GiB
# Weights of a source pixel by its distance, in the larger of source's and output's pixels: those of views.augmentation
KERNELS = {
    "bilinear": """
  {a}near = Sub(one, {a}distance)
  {a}weights = Relu({a}near)""",
    "bicubic": """
  {a}less = Sub({a}distance, one)
  {a}more = Sub({a}distance, two)
  {a}steep = Mul(steepness, {a}distance)
  {a}inner = Sub({a}steep, one)
  {a}curved = Mul({a}inner, {a}distance)
  {a}bowed = Sub({a}curved, one)
  {a}near = Mul({a}less, {a}bowed)
  {a}square = Mul({a}more, {a}more)
  {a}falling = Mul({a}less, {a}square)
  {a}far = Mul(minus_half, {a}falling)
  {a}is_near = Less({a}distance, one)
  {a}is_far = Less({a}distance, two)
  {a}or_zero = Where({a}is_far, {a}far, nought)
  {a}weights = Where({a}is_near, {a}near, {a}or_zero)""",
}
# The matrix that resizes an axis. Places are counted in whole numbers of half an output's pixel, so that weights are exact
AXIS = """
  {a}length = Gather(lengths, {a}axis)
  {a}target = Gather(targets, {a}axis)
  {a}begin = Gather(begins, {a}axis)
  {a}count = Squeeze({a}length)
  {a}positions = Range(whole_nought, {a}count, whole_one)
  {a}doubled = Mul({a}positions, whole_two)
  {a}odd = Add({a}doubled, whole_one)
  {a}sources = Mul({a}odd, {a}target)
  {a}begun = Mul({a}begin, whole_two)
  {a}outputs = Add({a}begun, odd_places)
  {a}centres = Mul({a}outputs, {a}length)
  {a}sources_across = Unsqueeze({a}sources, {a}along)
  {a}centres_across = Unsqueeze({a}centres, {a}across)
  {a}apart = Sub({a}sources_across, {a}centres_across)
  {a}units_apart = Abs({a}apart)
  {a}larger = Max({a}length, {a}target)
  {a}unit = Mul({a}larger, whole_two)
  {a}float_apart = Cast<to=1>({a}units_apart)
  {a}float_unit = Cast<to=1>({a}unit)
  {a}distance = Div({a}float_apart, {a}float_unit)
  {kernel}
  {a}sum = ReduceSum<keepdims=1>({a}weights, {a}across)
  {a}matrix = Div({a}weights, {a}sum)"""
# Where the middle square of an image begins whose shorter side is resized; halves to even, as torchvision's CenterCrop rounds
CROP = """
  shorter = ReduceMin<keepdims=1>(lengths)
  enlarged = Mul(lengths, resize)
  targets = Div(enlarged, shorter)
  excess = Sub(targets, size)
  half = Div(excess, whole_two)
  is_odd = Mod(excess, whole_two)
  half_is_odd = Mod(half, whole_two)
  more = Mul(is_odd, half_is_odd)
  begins = Add(half, more)"""
SQUEEZED = """
  targets = Identity(square)
  begins = Identity(upper_left)"""


def listed(values: Sequence[float | int]) -> str:
    """Numbers as ONNX's text has them."""
    return "{" + ", ".join(repr(value) for value in values) + "}"


def before_images(seen: Preprocessing) -> "GraphProto":
    """Squares of pixels, `images` uint8 (batch, size, size, 3), to normalised planes."""
    return parsed(f"""squares (uint8[batch, {seen.size}, {seen.size}, 3] {IMAGES}) => (float[batch, 3, {seen.size}, {seen.size}]
{PIXELS}) <{_colours(seen)}> {{
  whole = Transpose<perm=[0, 3, 1, 2]>({IMAGES})
  planes = Cast<to=1>(whole)
  scaled = Mul(planes, scale)
  {PIXELS} = Add(scaled, shift)
}}""")


def before_any_size(seen: Preprocessing) -> "GraphProto":
    """One `image` uint8 (height, width, 3) to normalised planes: `views.fitting.fitted_view` by two matrices."""
    kernel, size = KERNELS[seen.interpolation], seen.size
    # the matrix of rows is (size, height), that of columns (width, size)
    axes = "".join(AXIS.format(a=a, kernel=kernel.format(a=a)) for a in ("rows_", "columns_"))
    constants = f"""int64 whole_nought = {{0}}, int64 whole_one = {{1}}, int64 whole_two = {{2}}, float one = {{1.0}},
  float two = {{2.0}}, float nought = {{0.0}}, float steepness = {{1.5}}, float minus_half = {{-0.5}}, int64 size = {{{size}}},
  int64 resize = {{{seen.resize or size}}}, int64[2] square = {{{size}, {size}}}, int64[2] upper_left = {{0, 0}},
  int64[1] first = {{0}}, int64[1] rows_axis = {{0}}, int64[1] columns_axis = {{1}}, int64[1] rows_along = {{0}},
  int64[1] rows_across = {{1}}, int64[1] columns_along = {{1}}, int64[1] columns_across = {{0}},
  int64[{size}] odd_places = {listed(range(1, 2 * size, 2))}, int64[2] rows_of_pixels = {{0, -1}},
  int64[3] columns_of_pixels = {{{size}, -1, 3}}, {_colours(seen)}"""
    return parsed(f"""any_size (uint8[height, width, 3] {IMAGE}) => (float[1, 3, {size}, {size}] {PIXELS}) <{constants}> {{
  lengths = Shape<start=0, end=2>({IMAGE})
  {SQUEEZED if seen.resize is None else CROP}
  {axes}
  levels = Cast<to=1>({IMAGE})
  lines = Reshape(levels, rows_of_pixels)
  short = MatMul(rows_matrix, lines)
  short_lines = Reshape(short, columns_of_pixels)
  high = Transpose<perm=[2, 0, 1]>(short_lines)
  planes = MatMul(high, columns_matrix)
  all = Unsqueeze(planes, first)
  scaled = Mul(all, scale)
  {PIXELS} = Add(scaled, shift)
}}""")


def behind(bits: int) -> "GraphProto":
    """Logits to codes, uint8 (batch, bytes): each bit times what it is worth in its byte."""
    size = -(-bits // 8)
    worth = [float(128 >> bit % 8 if bit // 8 == byte else 0) for bit in range(bits) for byte in range(size)]
    return parsed(f"""pack (float[batch, {bits}] {LOGITS}) => (uint8[batch, {size}] {CODES})
<float edge = {{0.0}}, float[{bits}, {size}] worth = {listed(worth)}> {{
  signs = Greater({LOGITS}, edge)
  ones = Cast<to=1>(signs)
  bytes = MatMul(ones, worth)
  {CODES} = Cast<to=2>(bytes)
}}""")


def _colours(seen: Preprocessing) -> str:
    """Pixels of 0..255 over mean and standard deviation, as one product and one sum."""
    scale = [1 / (255 * deviation) for deviation in seen.std]
    shift = [-mean / deviation for mean, deviation in zip(seen.mean, seen.std, strict=True)]
    return f"float[1, 3, 1, 1] scale = {listed(scale)}, float[1, 3, 1, 1] shift = {listed(shift)}"


def parsed(text: str) -> "GraphProto":
    """A graph of ONNX's text form, without the constants that it does not use."""
    from onnx import parser

    graph = parser.parse_graph(text)
    used = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return graph


def joined(core: "ModelProto", before: "GraphProto | None", encoder: HashEncoder) -> "ModelProto":
    """A whole encoder: what comes before its hash model (nothing does of rows), the model, and codes behind it."""
    import onnx
    from onnx import compose, helper

    after = behind(encoder.bits)
    parts = [compose.add_prefix_graph(part, prefix) for prefix, part in (("before.", before), ("behind.", after))
             if part is not None]
    whole = onnx.ModelProto()
    whole.CopyFrom(core)
    graph = whole.graph
    graph.name = "encoder"
    del graph.value_info[:]
    outer = {f"before.{PIXELS}": PIXELS, f"behind.{LOGITS}": LOGITS, f"behind.{CODES}": CODES,
             **{f"before.{name}": name for name in (IMAGES, IMAGE)}}
    for part in parts:
        for node in part.node:
            node.input[:] = [outer.get(name, name) for name in node.input]
            node.output[:] = [outer.get(name, name) for name in node.output]
        graph.initializer.extend(part.initializer)
    nodes = [*(parts[0].node if before is not None else ()), *core.graph.node, *parts[-1].node]
    del graph.node[:]
    graph.node.extend(nodes)
    _put_ends(graph, before, after)
    about = {"bits": encoder.bits, "space": encoder.space, "backbone": encoder.backbone, "role": encoder.role}
    helper.set_model_props(whole, {name: str(value) for name, value in about.items()})
    return checked(whole)


def _put_ends(graph: "GraphProto", before: "GraphProto | None", after: "GraphProto") -> None:
    """The inputs and outputs of a whole encoder, of one image or of a batch."""
    found = (graph.input if before is None else before.input), (*graph.output, *after.output)
    inputs, outputs = ([type(value).FromString(value.SerializeToString()) for value in values] for values in found)
    if inputs[0].name == IMAGE:
        for value in outputs:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.extend(outputs)


def checked(model: "ModelProto") -> "ModelProto":
    """The model, if it is one. Raises InputError for one that no single file holds."""
    import onnx

    if model.ByteSize() > LARGEST:
        raise InputError(f"{model.ByteSize() / 2**30:.1f} GiB, and a file of ONNX holds less than 2; export to torch or "
                         "stablehlo")
    onnx.checker.check_model(model)
    return model
