"""Compare what a site has set with the schema of its choices, and tell each fault in words with its remedy."""

from __future__ import annotations

import base64
import binascii
import copy
import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load  # libyaml's parser: this is read for every host
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from jsonschema.validators import extend

LONGEST = 60
NEAR = 0.75  # difflib's ratio from which one field's name counts as a misspelling of the other
REPLACE_KEY = (
    "Put the public key here, the content of the file that ends with .pub. Have its owner replace the key pair: "
    "this private key was written down, so others may have read it"
)
SECRET = "vault_"  # noqa: S105 - what the names of secrets begin with
TEMPLATE = "Correct it. A secret that contains {{ or {% needs the tag !unsafe before it"
KINDS = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a mapping"),
)
WANTED = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}


class Fault(NamedTuple):
    """A value that the schema refuses: the variable, the way to the value in it, what is wrong, and what to do."""

    variable: str
    path: tuple[str | int, ...]
    place: str
    what: str
    cure: str


class RefusedError(ValueError):
    """Why a format refuses a value, and what to do. Either may be empty: the schema's words then stand for it."""

    def __init__(self, what: str = "", cure: str = "") -> None:
        """Keep both."""
        super().__init__(what)
        self.what, self.cure = what, cure


# -- Formats

LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
DOMAIN = re.compile(rf"(?=.{{1,240}}\Z)({LABEL}\.)+(?=[^.]*[a-z]){LABEL}")
KEY = re.compile(r"(ssh-(?:ed25519|rsa)|ecdsa-sha2-\S+|sk-(?:ssh|ecdsa)-\S+@openssh\.com)\s+([A-Za-z0-9+/=]+)(?:\s|$)")
FORMATS = FormatChecker(formats=())


def _format(name: str) -> Callable[[Callable[[str], None]], Callable[[Any], bool]]:
    """Register a check of texts, which raises RefusedError; other kinds are the business of `type`."""

    def register(check: Callable[[str], None]) -> Callable[[Any], bool]:
        def passes(value: Any) -> bool:
            if isinstance(value, str):
                check(value)
            return True

        FORMATS.checks(name, raises=RefusedError)(passes)
        return passes

    return register


@_format("login-name")
def _login_name(value: str) -> None:
    if re.fullmatch(r"[a-z][a-z0-9._-]{2,31}", value):
        return
    if len(value) < 3 and re.fullmatch(r"[a-z][a-z0-9._-]*", value):
        raise RefusedError("is too short for a key of the object store")
    if "@" in value:
        raise RefusedError("is an e-mail address, not a login name")
    raise RefusedError


@_format("domain")
def _domain(value: str) -> None:
    if all(len(label) < 64 for label in value.split(".")) and DOMAIN.fullmatch(value):
        return
    meant = value.strip().lower()
    meant = (urlsplit(meant).hostname or "") if "://" in meant else meant
    meant = meant.partition("/")[0].partition(":")[0].rstrip(".").replace("_", "-")
    raise RefusedError(cure=f"Write {meant}" if DOMAIN.fullmatch(meant) else "")


@_format("url")
def _url(value: str) -> None:
    if not value:
        return
    try:
        parsed = urlsplit(value)
        fits = parsed.scheme in ("http", "https") and bool(parsed.hostname) and (parsed.port or 1) > 0
    except ValueError:
        fits = False
    if not fits or re.search(r"\s", value):
        raise RefusedError


@_format("network")
def _network(value: str) -> None:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise RefusedError from None


@_format("place")
def _place(value: str) -> None:
    host, _, port = value.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare and not host.startswith("["):
        raise RefusedError(cure="Write an IPv6 address in brackets: [2001:db8::1]:443")
    if not re.fullmatch(r"[A-Za-z0-9._:/-]+", bare) or "//" in bare:
        raise RefusedError
    if port != "any" and not (re.fullmatch(r"\d{1,5}", port) and 1 <= int(port) <= 65535):
        raise RefusedError


@_format("known-hosts")
def _known_hosts(value: str) -> None:
    for line in value.splitlines():
        if line.strip() and not line.startswith("#") and len(line.split()) < 3:
            raise RefusedError


@_format("ssh-public-key")
def _ssh_public_key(value: str) -> None:
    key = value.strip()
    if "PRIVATE KEY" in key:
        raise RefusedError("is a private key", REPLACE_KEY)
    if "\n" in key:
        raise RefusedError("has several lines", "List each key as an entry of its own, on one line")
    if re.match(r"[/~.]\S*$", key) or re.fullmatch(r"\S+\.pub", key):
        raise RefusedError(
            "is a file's path, not a public SSH key",
            "Write the file's content, or \"{{ lookup('ansible.builtin.file', '/path/id_ed25519.pub') }}\"",
        )
    if re.search(r"…|\.\.\.", key):
        raise RefusedError("is an example's placeholder", "Use the content of the person's own .pub file, on one line")
    found = KEY.search(key)
    if not found or not _holds(found[2], found[1]):
        raise RefusedError("is not a public SSH key, or a part of it is missing" if found else "")


def _holds(encoded: str, kind: str) -> bool:
    """Tell whether the fields of an encoded key are complete, and the first one names its kind."""
    try:
        rest = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    fields = []
    while len(rest) >= 4:
        size = int.from_bytes(rest[:4], "big")
        fields.append(rest[4 : 4 + size])
        if len(fields[-1]) < size:
            return False
        rest = rest[4 + size :]
    return not rest and len(fields) > 1 and fields[0] == kind.encode()


# -- Validation


def plain(value: Any) -> Any:
    """Return a value as JSON has it, without Ansible's own classes."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    return str(value)


def _whole(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _matches(_: Any, pattern: str, value: Any, __: Any) -> Iterable[Exception]:
    """Check a pattern; unlike `$` in Python, its end is the end of the text and not a line break before it."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


Validator = extend(
    Draft202012Validator,
    {"pattern": _matches},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _whole),
)


def is_choice(name: str, schema: Mapping[str, Any]) -> bool:
    """Tell whether the schema says anything about a variable."""
    return name in schema["properties"] or any(re.search(one, name) for one in schema.get("patternProperties", ()))


def faults(choices: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Fault]:
    """Return what the schema refuses: one fault for each wrong value."""
    found: dict[tuple[Any, ...], list[Fault]] = {}
    for error in Validator(schema, format_checker=FORMATS).iter_errors(choices):
        path = tuple(error.absolute_path)
        for fault in _told(error, path, choices, schema):
            found.setdefault(fault.path, []).append(fault)
    # One value, one fault; and a wrong name of a field may be why another field is missing.
    return [one[0] for path, one in found.items() if not any(path[:n] in found for n in range(1, len(path)))]


def _told(error: Any, path: tuple[Any, ...], choices: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Fault]:
    """Return an error in words."""
    variable, place = str(path[0]), _place_of(path, choices)
    if error.validator == "required":
        return _missing(error, path, place, schema)
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        return [
            Fault(variable, (*path, name), place, f"has an unknown field, {name}", _instead(name, known))
            for name in error.instance
            if name not in known
        ]
    what, cure = _words(error, schema)
    return [Fault(variable, path, place, what, cure)]


def _missing(error: Any, path: tuple[Any, ...], place: str, schema: Mapping[str, Any]) -> list[Fault]:
    known = error.schema.get("properties", {})
    name = next(one for one in error.validator_value if one not in error.instance and f"'{one}'" in error.message)
    if any(_near(other, [name]) for other in error.instance if other not in known):
        return []
    field = known.get(name, {})
    field = schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field
    hint = f": {field['description']}" if "description" in field else ""
    return [Fault(str(path[0]), (*path, name), place, f"has no {name}", f"Set `{name}`{hint}")]


def _near(name: str, names: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1, cutoff=NEAR)), "")


def _instead(name: str, known: Iterable[str]) -> str:
    meant = _near(name, known)
    return f"Did you mean `{meant}`?" if meant else f"The fields are: {', '.join(sorted(known))}"


def _words(error: Any, schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return what is wrong with a value, and what to do."""
    value, wanted = error.instance, error.schema
    if isinstance(value, str) and "PRIVATE KEY" in value and not wanted.get("writeOnly"):
        return "is a private key", REPLACE_KEY
    title = wanted.get("title") or WANTED.get(str(wanted.get("type")), "what is expected")
    use = f"Use {wanted['description']}" if "description" in wanted else f"Use {title}"
    shown = "" if wanted.get("writeOnly") else show(value)
    if value is None:
        return "has no value", use
    if error.validator == "type" or (error.validator == "enum" and not isinstance(value, str)):
        kind = next(words for cls, words in KINDS if isinstance(value, cls))
        held = f"{shown} is {kind}" if shown and kind != "true or false" else f"is {shown or kind}"
        return f"{held}, not {title}", _converted(value, wanted, schema) or use
    if error.validator == "enum":
        meant = _near(str(value), map(str, wanted["enum"]))
        return f"{shown} is not {title}", f"Did you mean `{meant}`?" if meant else use
    if isinstance(error.cause, RefusedError):
        hidden = shown and not error.cause.what.startswith("is a private key")
        what = error.cause.what or f"is not {title}"
        return (f"{shown} {what}" if hidden else what), error.cause.cure or use
    return (f"{shown} is not {title}" if shown else f"is not {title}"), use


def _converted(value: Any, wanted: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return how to write the same value in the wanted type, if it is right then."""
    if wanted.get("writeOnly"):
        return "Write it in quotes" if wanted.get("type") == "string" and isinstance(value, (int, float)) else ""
    kind, written = wanted.get("type"), str(value).lower()
    meant: Any = None
    if kind in ("integer", "number") and isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        meant, how = int(value), f"Write it without quotes: {value}"
    elif kind == "boolean" and written in ("true", "yes", "false", "no"):
        meant = written in ("true", "yes")
        how = f"Write it without quotes: {str(meant).lower()}"
    elif kind == "string" and isinstance(value, (int, float)) and not isinstance(value, bool):
        meant, how = written, f'Write it in quotes: "{written}"'
    elif kind == "array" and isinstance(value, str):
        meant, how = [value], f"Write a list: [{show(value)}]"
    fits = meant is not None and Validator(schema, format_checker=FORMATS).evolve(schema=wanted).is_valid(meant)
    return how if fits else ""


def show(value: Any) -> str:
    """Return a short value as YAML would have it; nothing for lists and mappings, which may hold anything."""
    if isinstance(value, (list, dict)) or value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False)
    text = re.sub(r"(://[^/@\s:]*):[^/@\s]*@", r"\1:…@", text)
    return text if len(text) <= LONGEST else f'{text[: LONGEST - 2]}…"'


def _place_of(path: Sequence[Any], choices: Mapping[str, Any]) -> str:
    """Return the way to a value within its variable, in words; entries of lists count from 1."""
    words: list[str] = []
    value = choices
    for step, before in zip(path, (None, *path), strict=False):
        value = value[step]
        if before is None:
            continue
        if isinstance(step, int):
            name = value.get("name") if isinstance(value, dict) else None
            words.append(f"entry {step + 1}" + (f" ({name})" if isinstance(name, str) and _short(name) else ""))
        elif words and isinstance(before, str) and before != path[0]:
            words[-1] += f".{step}"
        else:
            words.append(str(step))
    return "".join(f", {word}" for word in words)


def _short(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.@ -]{1,40}", name))


def repaired(choices: Mapping[str, Any], found: Sequence[Fault], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to go on with for each variable that has a fault, so that nothing that follows from it is told.

    An entry of a list goes without its neighbours; anything else is replaced by its default.
    """
    result: dict[str, Any] = {}
    for variable in dict.fromkeys(fault.variable for fault in found):
        paths = [fault.path for fault in found if fault.variable == variable]
        if isinstance(choices.get(variable), list) and all(len(path) > 1 for path in paths):
            wrong = {path[1] for path in paths}
            result[variable] = [one for index, one in enumerate(choices[variable]) if index not in wrong]
        elif variable in defaults:
            result[variable] = copy.deepcopy(defaults[variable])
    return result


class Choices(NamedTuple):
    """What a site has set: its faults, what cannot be computed (with the reason), and what to go on with instead."""

    faults: list[Fault]
    unresolved: list[tuple[str, str]]
    repaired: dict[str, Any]


def judge(
    variables: Mapping[str, Any],
    schema: Mapping[str, Any],
    compute: Callable[[str], Any],
    defaults: Callable[[], Mapping[str, Any]],
) -> Choices:
    """Check every choice in a host's variables.

    `compute` returns the value of a variable, `defaults` the values that the product sets itself.
    """
    values: dict[str, Any] = {}
    unresolved: list[tuple[str, str]] = []
    for name in variables:
        if is_choice(name, schema):
            try:
                values[name] = plain(compute(name))
            except AnsibleError as error:
                unresolved.append((name, str(error.message).rstrip(".")))
    # An empty secret is a missing one, which is told elsewhere.
    found = faults({name: value for name, value in values.items() if value or not name.startswith(SECRET)}, schema)
    # The reason might quote the secret.
    wrong = [name for name, _ in unresolved if name.startswith(SECRET)]
    found += [Fault(name, (name,), "", "is a template that cannot be computed", TEMPLATE) for name in wrong]
    unresolved = [(name, reason) for name, reason in unresolved if name not in wrong]
    better = repaired(values, found, defaults()) if found or unresolved else {}
    better |= {name: defaults()[name] for name, _ in unresolved if name in defaults()}
    return Choices(found, unresolved, better)


def product_defaults(product: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    """Return what the product sets by itself: roles' defaults, then the choices and parts, which outrank them."""
    files = [*product.glob("roles/*/defaults/main.yml"), *sorted((product / "group_vars/all").rglob("*.yml"))]
    found: dict[str, Any] = {}
    for path in files:
        found |= load(str(path)) or {}
    return found


def judge_in(action: Any, variables: Mapping[str, Any], product: Path) -> Choices:
    """Check every choice in the variables of an action plugin whose argument `schema` is the schema's path."""
    return judge(
        variables,
        yaml_load(Path(action._task.args["schema"]).read_text()),
        lambda name: action._templar.template(variables[name]),
        lambda: product_defaults(product, lambda path: action._loader.load_from_file(path, trusted_as_template=True)),
    )
