"""The making of a model's hashed ids in words, for whoever scores an exported model without dfm."""

from __future__ import annotations

from dfm.data.hashing import MISSING, PRESENT, bucket_token
from dfm.data.matrices import is_vector
from dfm.data.schema import Field, ResolvedSchema
from dfm.data.transforms import TRANSFORMS
from dfm.kernels.families.registry import family_of
from dfm.model.fm_model import FMModel

_VALUES = """\
Text of a value: text as it is, in UTF-8; of an integer its decimal digits; of a whole float the digits of the integer;
of another number the shortest decimal that reads back as the same float (0.1, no exponent); true and false; of a
moment YYYY-MM-DD HH:MM:SS in UTC, of a midnight the date alone. """
_OF_FEATURES = (
    "Readers of the field-aware text take, beside an id that the model knows, the field of the feature that has it "
    "(column field of the Parquet table), which is another one where values of two columns share an id.\n"
)


def ids_explained(model: FMModel) -> str:
    """The rule for ids, fields and values of the model, field by field."""
    schema, bits = model.schema, model.vocabulary.hash_bits
    head = (
        "Inputs: ids and fields (int64), values (float32), each [n_rows, n_entries]; a row has one entry a field, in "
        "the order below, and one per element of a list; shorter rows end in id -1, field 0, value 0.\n"
        "dfm.export.hashed_inputs(FMModel.load(url), rows) makes them of raw rows. By hand:\n"
    )
    if is_vector(schema):
        return (
            f"{head}The id of column j (from 0) is j, its value the number, standardized where model.json says so: "
            f"{', '.join(schema.columns)}."
        )
    rule = (
        f"id = XXH64(text, seed = XXH64(column name, seed = 0)) mod 2^{bits}; ids that the model does not know "
        "stand for their field's bucket of rare values, if it has one; the graph reads fields for these alone.\n"
        f"{_OF_FEATURES if family_of(model.table.layout.family).has_groups else ''}"
    )
    fields = "\n".join(f"{entry.index}. {_explained(entry, schema)}" for entry in schema.fields)
    return f"{head}{rule}{_VALUES}{_missing(schema)}\nFields:\n{fields}"


def _missing(schema: ResolvedSchema) -> str:
    listed = f"; in columns of text and their lists {', '.join(map(repr, schema.missing))}" if schema.missing else ""
    return f"A missing one (null, NaN, empty text{listed}): the bytes {MISSING!r}."


def _explained(entry: Field, schema: ResolvedSchema) -> str:
    source = next(
        (f", which is {one.function}({', '.join(one.columns)})" for one in schema.derived if one.name == entry.name), ""
    )
    digits = "; the text of an integer without zeros in front" if entry.name in schema.integers else ""
    if entry.kind == "cross":
        return (
            f"{entry.name}: the ids of {' and '.join(entry.columns)}, made with 2^30 in place of the model's size, as "
            "8 bytes each, little-endian, hashed with the seed XXH64(name of the cross); of more than two, pair by "
            "pair; every element of a list makes one, of its weight"
        )
    if entry.bucketed:
        return (
            f"{entry.name}{source}: the text is {bucket_token(7)!r} with the number of the bucket for 7; "
            f"{TRANSFORMS[entry.transform].meaning}, numbered from 1 (boundaries: model.json)"
        )
    if entry.kind == "numeric":
        return f"{entry.name}{source}: the text is {PRESENT!r}, the value the {TRANSFORMS[entry.transform].meaning}"
    if entry.kind == "list":
        return f"{entry.name}: {_list_explained(entry, schema)}"
    return f"{entry.name}{source}: a category, value 1{digits}"


def _list_explained(entry: Field, schema: ResolvedSchema) -> str:
    of_one = entry.transform == "one"
    weight, own = ("1", "w") if of_one else ("1 / sqrt(number of elements)", "w / sqrt(sum of the row's w^2)")
    parted = f"; a text is parted at {schema.list_separator!r}" if schema.list_separator else ""
    return (
        f"every element is a value, of weight {weight}, or {own} where elements have weights w; an empty list is a "
        f"missing value of weight 1{parted}"
    )
