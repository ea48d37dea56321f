"""Two hundred JSON schemas, no two of a kind, that answers are held to."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def obj(properties: dict[str, Schema], required: list[str] | None = None, **more: Any) -> Schema:
    """An object that has no other properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
        **more,
    }


def arr(items: Schema, low: int | None = None, high: int | None = None, **more: Any) -> Schema:
    """An array."""
    limits = {"minItems": low, "maxItems": high}
    return {"type": "array", "items": items, **{k: v for k, v in limits.items() if v is not None}, **more}


TEXT, INT, NUM, BOOL, NULL = ({"type": kind} for kind in ("string", "integer", "number", "boolean", "null"))
ALPHABETS = ["абвгд", "αβγδ", "你好世界", "日本語", "한국어", "עברית", "العربية", "देव", "äöüß", "żółć", "🙂🚀", "ñandú"]


def strings() -> list[Schema]:
    patterns = [
        "^[a-z]+$",
        "^[A-Z]{2,4}$",
        r"^\d{3}-\d{4}$",
        "^(red|green|blue)$",
        r"^#[0-9a-f]{6}$",
        "^[а-я]{1,8}$",
        r"^\w+ \w+$",
        "^a*b+c?$",
        r"^[^0-9]{5}$",
        r"^\+?[1-9][0-9]{4,11}$",
        "^(https?)://[a-z]{1,9}\\.(com|org)$",
        "^[一-龥]{2,3}$",
        r"^[A-Z][a-z]{1,9}( [A-Z][a-z]{1,9}){0,2}$",
        r"^v[0-9]+(\.[0-9]+){2}$",
    ]
    formats = ["date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "uri", "hostname", "duration"]
    return [
        TEXT,
        {"type": "string", "maxLength": 0},
        {"type": "string", "minLength": 1, "maxLength": 1},
        {"type": "string", "minLength": 12},
        {"type": "string", "minLength": 3, "maxLength": 7},
        *({"type": "string", "pattern": pattern} for pattern in patterns),
        *({"type": "string", "format": name} for name in formats),
    ]


def numbers() -> list[Schema]:
    return [
        INT,
        NUM,
        {"type": "integer", "minimum": 0},
        {"type": "integer", "maximum": -1},
        {"type": "integer", "minimum": -5, "maximum": 5},
        {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
        {"type": "integer", "minimum": 1900, "maximum": 2100},
        {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 25},
        {"type": "integer", "minimum": 123456789, "maximum": 123456799},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "number", "minimum": -90.5, "maximum": 90.5},
        {"type": "number", "minimum": 0.001, "maximum": 0.002},
        {"type": "number", "maximum": -273.15},
        BOOL,
        NULL,
    ]


def enums() -> list[Schema]:
    return [
        {"enum": ["yes", "no"]},
        {"enum": ["a", "ab", "abc"]},
        {"enum": [1, 2.5, None, True, "x", [1], {"k": []}]},
        {"enum": ['quote " inside', "back \\ slash", "line\nbreak", "tab\t", "slash /"]},
        {"const": {"fixed": [1, {"deep": None}]}},
        {"const": ""},
        {"const": -0.5},
        {"type": "string", "enum": [f"option {n}" for n in range(300)]},
        *({"enum": [word, word[::-1]]} for word in ALPHABETS),
    ]


def arrays() -> list[Schema]:
    return [
        arr(TEXT),
        arr(INT, 3),
        arr(NUM, 2, 2),
        arr(BOOL, 0, 4),
        arr(NULL, 1, 3),
        arr({}, 1, 2),
        arr({"enum": ["да", "нет"]}, 4, 4),
        arr(arr(INT, 1, 2), 1, 3),
        arr(arr(arr(arr(BOOL, 1, 1), 1, 1), 1, 1), 1, 1),
        arr(obj({"x": INT, "y": INT}), 1, 3),
        arr({"type": ["integer", "null"]}, 2, 5),
        arr({"type": "string", "maxLength": 3}, 2, 6),
        arr({"anyOf": [INT, obj({"k": BOOL})]}, 1, 4),
        arr({"type": "number", "minimum": 0, "maximum": 1}, 4, 4),
        {"type": "array", "prefixItems": [TEXT, INT, BOOL], "items": False, "minItems": 3},
        {"type": "array", "prefixItems": [INT], "items": TEXT, "minItems": 2, "maxItems": 4},
        {"type": "array", "prefixItems": [NUM, NUM, NUM, NUM], "items": False},
        {"type": "array", "maxItems": 0},
        {"type": "array"},
        arr({"type": "string", "format": "date"}, 2, 2),
    ]


def objects() -> list[Schema]:
    return [
        {"type": "object"},
        obj({}),
        obj({"a": TEXT}),
        obj({"a": TEXT, "b": INT}, []),
        obj({"a": TEXT, "b": INT, "c": BOOL}, ["b"]),
        obj({f"field_{n}": {"type": "integer", "minimum": 0, "maximum": 9} for n in range(25)}),
        obj({f"maybe_{n}": BOOL for n in range(12)}, []),
        obj({f"half_{n}": NULL for n in range(8)}, [f"half_{n}" for n in range(0, 8, 2)]),
        *(obj({word: TEXT, word + "2": INT}) for word in ALPHABETS),
        obj({'ke"y': INT, "ba\\ck": INT, "new\nline": INT, "": INT, " ": BOOL}),
        {"type": "object", "additionalProperties": INT},
        {"type": "object", "additionalProperties": arr(TEXT, 1, 2), "minProperties": 1, "maxProperties": 3},
        {"type": "object", "properties": {"id": INT}, "required": ["id"], "additionalProperties": TEXT},
        {"type": "object", "properties": {"id": INT}, "required": ["id"]},
        {"type": "object", "patternProperties": {"^x_[a-z]{1,5}$": NUM}, "additionalProperties": False},
        {"type": "object", "patternProperties": {"^s_": TEXT, "^n_": INT}, "additionalProperties": False},
        {"type": "object", "required": ["only", "names"]},
        obj({"a": obj({"b": obj({"c": obj({"d": obj({"e": TEXT})})})})}),
        obj({"o": {"type": "object", "additionalProperties": BOOL, "maxProperties": 2}}),
        obj({"list": arr(obj({"name": TEXT, "tags": arr(TEXT, 0, 2)}), 1, 2), "total": INT}),
        obj({"null_or": {"type": ["null", "string"]}, "mixed": {"type": ["integer", "array"], "maxItems": 2}}),
        {"type": "object", "properties": {"a": True, "b": INT}, "required": ["a", "b"], "additionalProperties": False},
        {"type": "object", "title": "Titled", "description": "Words", "default": {}, **obj({"t": TEXT})},
        obj({"café": INT, "naïve": {"const": "çà"}, "日付": {"type": "string", "format": "date"}}),
    ]


def unions() -> list[Schema]:
    return [
        {},
        {"anyOf": [TEXT, INT]},
        {"anyOf": [obj({"kind": {"const": "a"}, "x": INT}), obj({"kind": {"const": "b"}, "y": TEXT})]},
        {"oneOf": [obj({"t": {"const": 1}, "v": INT}), obj({"t": {"const": 2}, "v": BOOL})]},
        {"oneOf": [TEXT, NULL]},
        {"anyOf": [{"enum": ["x"]}, arr(INT, 1, 2), NULL]},
        {"type": ["string", "number", "null"]},
        {"type": ["object", "array"], "maxItems": 1, "maxProperties": 1},
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]},
        {"allOf": [obj({"a": INT}, additionalProperties=True), {"properties": {"b": TEXT}, "required": ["b"]}]},
        {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}]},
        {"anyOf": [{"type": "integer", "minimum": 100}, {"type": "integer", "maximum": -100}]},
        {"anyOf": [{"const": None}, {"const": "none"}, {"const": 0}]},
        obj({"value": {"anyOf": [NUM, TEXT, NULL]}, "unit": {"enum": ["kg", "g", "µg"]}}),
        arr({"oneOf": [obj({"add": INT}), obj({"drop": TEXT})]}, 1, 3),
        {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": INT, "b": INT}},
    ]


def references() -> list[Schema]:
    node = {"$ref": "#/$defs/node"}
    return [
        {"$ref": "#/$defs/x", "$defs": {"x": INT}},
        {**arr({"$ref": "#/$defs/point"}, 2, 3), "$defs": {"point": obj({"x": NUM, "y": NUM})}},
        {**node, "$defs": {"node": obj({"value": INT, "next": {"anyOf": [node, NULL]}})}},
        {**node, "$defs": {"node": obj({"name": TEXT, "children": arr(node, 0, 2)})}},
        {**node, "$defs": {"node": obj({"leaf": INT, "left": node, "right": node}, ["leaf"])}},
        {
            "type": "object",
            "properties": {"self": {"$ref": "#"}, "n": INT},
            "required": ["n"],
            "additionalProperties": False,
        },
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": obj({"b": arr({"$ref": "#/$defs/b"}, 0, 1)}),
                "b": obj({"a": {"anyOf": [NULL, {"$ref": "#/$defs/a"}]}}),
            },
        },
        {
            "$ref": "#/$defs/expr",
            "$defs": {
                "expr": {
                    "anyOf": [INT, obj({"op": {"enum": ["+", "-", "×"]}, "of": arr({"$ref": "#/$defs/expr"}, 2, 2)})]
                }
            },
        },
        {"$ref": "#/definitions/old", "definitions": {"old": obj({"style": TEXT})}},
        {**obj({"a": {"$ref": "#/properties/b"}, "b": {"enum": ["one", "two"]}})},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": BOOL}},
        {"anyOf": [{"$ref": "#/$defs/u"}, {"$ref": "#/$defs/v"}], "$defs": {"u": arr(INT, 1, 1), "v": obj({"v": {}})}},
    ]


def documents() -> list[Schema]:
    money = {"type": "string", "pattern": r"^\d{1,6}\.\d{2}$"}
    box = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1024}, "minItems": 4, "maxItems": 4}
    person = obj({"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "email": {"type": "string"}})
    return [
        person,
        obj(
            {
                "invoice": TEXT,
                "date": {"type": "string", "format": "date"},
                "lines": arr(obj({"item": TEXT, "quantity": {"type": "integer", "minimum": 1}, "price": money}), 1, 3),
                "total": money,
            }
        ),
        obj({"shop": TEXT, "currency": {"enum": ["EUR", "USD", "₽", "¥"]}, "total": NUM, "paid": BOOL}),
        obj({"objects": arr(obj({"label": {"enum": ["circle", "square", "star"]}, "box": box}), 1, 3)}),
        obj({"answer": TEXT, "confidence": {"type": "number", "minimum": 0, "maximum": 1}}),
        obj({"steps": arr(obj({"explanation": TEXT, "output": TEXT}), 1, 2), "final_answer": TEXT}),
        obj({"sentiment": {"enum": ["positive", "neutral", "negative"]}, "topics": arr(TEXT, 0, 3)}),
        obj({"title": TEXT, "authors": arr(person, 1, 2), "year": {"type": "integer", "minimum": 1450}}),
        obj({"table": obj({"columns": arr(TEXT, 2, 2), "rows": arr(arr(TEXT, 2, 2), 1, 2)})}),
        obj({"sku": {"type": "string", "pattern": "^[A-Z]{3}[0-9]{4}$"}, "stock": {"type": "integer", "minimum": 0}}),
        obj(
            {
                "latitude": {"type": "number", "minimum": -90, "maximum": 90},
                "longitude": {"type": "number", "minimum": -180, "maximum": 180},
            }
        ),
        obj({"from": {"type": "string", "format": "date-time"}, "to": {"type": "string", "format": "date-time"}}),
        obj({"is_document": BOOL, "language": {"type": "string", "pattern": "^[a-z]{2}$"}, "text": TEXT}),
        obj({"colours": arr({"type": "string", "pattern": "^#[0-9A-F]{6}$"}, 1, 4)}),
        obj({"q": TEXT, "choices": obj(dict.fromkeys("ABCD", TEXT)), "right": {"enum": list("ABCD")}}),
        obj({"name": TEXT, "contact": {"anyOf": [obj({"phone": TEXT}), obj({"post": TEXT, "zip": TEXT})]}}),
        obj({"config": {"type": "object", "additionalProperties": {"type": ["string", "integer", "boolean"]}}}),
        obj({"имя": TEXT, "возраст": {"type": "integer", "minimum": 0}, "город": {"enum": ["Москва", "Тверь"]}}),
        obj({"tree": obj({"kind": {"enum": ["oak", "elm"]}, "rings": arr(NUM, 0, 3)}), "seen": {"enum": [1, None]}}),
        obj({"board": arr(arr({"enum": ["x", "o", ""]}, 3, 3), 3, 3)}),
        obj({"id": {"type": "string", "format": "uuid"}, "ip": {"type": "string", "format": "ipv4"}, "ok": BOOL}),
        obj({"meta": {"type": "object"}, "data": arr({}, 0, 2)}, ["data"]),
        obj({"schedule": arr(obj({"day": {"enum": ["mo", "tu", "we"]}, "hours": arr(INT, 2, 2)}), 0, 3)}),
        obj({"verdict": {"enum": ["ja", "nein", "vielleicht"]}, "grund": {"type": "string", "maxLength": 80}}),
    ]


def lengths() -> list[Schema]:
    """Many of one kind with other numbers."""
    return [
        *({"type": "string", "minLength": n, "maxLength": n} for n in range(2, 14)),
        *(arr({"type": "integer", "minimum": 0, "maximum": 10**n}, n, n) for n in range(1, 10)),
        *({"type": "integer", "minimum": 7**n, "maximum": 7**n + 3} for n in range(2, 9)),
        *(obj({f"k{i}": {"enum": [i, str(i)]} for i in range(n)}) for n in range(2, 8)),
    ]


def all_schemas() -> list[Schema]:
    """The first two hundred, kinds mixed evenly."""
    kinds = [strings(), numbers(), enums(), arrays(), objects(), unions(), references(), documents(), lengths()]
    mixed = [kind[place] for place in range(max(map(len, kinds))) for kind in kinds if place < len(kind)]
    return mixed[:200]
