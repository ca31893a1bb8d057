"""Typed configuration: dataclass defaults < YAML file < ``key=value`` on the command line.

A run is a dataclass of sections, each a dataclass itself. A swappable section is declared with ``choice(TABLE, ...)``
and written ``{name: dit, width: 512}``; the table maps the name to a dataclass, never to an import path, so that a
configuration from a stranger cannot run code. Everything is checked before anything is built.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Table = Mapping[str, type]
T = TypeVar("T")


class ConfigError(ValueError):
    """A mistake in a configuration; its message is one line that names the key and the way out."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a value may be of several lines


def choice(table: Table, name: str, **overrides: Any) -> Any:
    """A dataclass field for a swappable section, ``table[name]`` by default."""
    return field(default_factory=lambda: table[name](**overrides), metadata={"table": table})


def section(kind: type[T], **overrides: Any) -> T:
    """A dataclass field for a fixed section; typed as what it holds, as ``dataclasses.field`` is."""
    made: Any = field(default_factory=lambda: kind(**overrides))
    return made


def at_home(path: str) -> str:
    """``path`` with the user's home in the place of a ``~``, which a shell leaves alone after ``key=``."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def nearest(name: str, names: list[str]) -> str:
    """``did you mean ...?`` for a misspelt name, or the whole list where nothing is near."""
    close = get_close_matches(str(name), names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(names))}"


def choose(table: Table, node: Any, key: str, default: Any, *, fresh: bool = False) -> Any:
    """The dataclass that ``node`` ({name: ..., field: ...}, or just the name) asks of ``table``, checked.

    Fields that it leaves out are those of ``default`` where that has the same name, or, if ``fresh``, the class's own.
    """
    node = {"name": node} if isinstance(node, str) else node
    if not isinstance(node, dict):
        raise ConfigError(f"{key}: a name or a section of keys is wanted here, not {node!r}")
    default_name = name_in(table, default)
    name = node.get("name", default_name)
    if not isinstance(name, str) or name not in table:
        raise ConfigError(f"{key}.name: no '{name}' here; {nearest(name, list(table))}")
    base = default if name == default_name and not fresh else table[name]()
    node = {field: value for field, value in node.items() if field != "name"}
    return _typed(base, node, key)


def name_in(table: Table, value: Any) -> str:
    """The name under which ``table`` lists the class of ``value``."""
    return next(name for name, kind in table.items() if type(value) is kind)


def load(kind: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """A ``kind`` filled from its defaults, the YAML file at ``path`` and ``key=value`` overrides, fully checked.

    A section that the file names starts from its class's defaults and not from those of ``kind``, so that a file says
    all that is special about its run.
    """
    given = _named(kind(), _read(Path(path))) if path is not None else {}
    return from_dict(kind, _overridden(given, overrides), fresh=tuple(given))


def update(base: T, overrides: Sequence[str]) -> T:
    """``base`` with ``key=value`` overrides laid over it, fully checked."""
    return from_dict(type(base), _overridden({}, overrides), base=base)


def from_dict(kind: type[T], given: dict[str, Any], *, base: T | None = None, fresh: tuple[str, ...] = ()) -> T:
    """A ``kind`` from nested plain values, every section checked; what they leave out is that of ``base``.

    Without a base it is ``kind``'s own defaults. Sections in ``fresh`` start from their class's instead.
    """
    defaults: Any = kind() if base is None else base
    known = {f.name: f for f in fields(defaults)}
    _refuse_interpolation(given)
    sections: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for key, node in given.items():
        if key not in known:
            raise ConfigError(f"unknown section '{key}'; {nearest(key, list(known))}")
        default = getattr(defaults, key)
        table = known[key].metadata.get("table")
        if table is not None:
            sections[key] = choose(table, node, key, default, fresh=key in fresh)
        elif is_dataclass(default):
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: a section of keys is wanted here, not {node!r}")
            start: Any = default
            sections[key] = _typed(type(start)() if key in fresh else start, node, key)
        else:
            plain[key] = node
    hints = get_type_hints(kind)
    scalars = {key: _scalar(node, hints[key], key) for key, node in plain.items()}
    return kind(**{**{name: getattr(defaults, name) for name in known}, **scalars, **sections})


def to_dict(run: Any) -> dict[str, Any]:
    """``run`` as nested plain values that ``from_dict`` reads back; swappable sections carry their name first."""
    made: dict[str, Any] = {}
    for f in fields(run):
        value = getattr(run, f.name)
        if is_dataclass(value) and not isinstance(value, type):
            table = f.metadata.get("table")
            made[f.name] = {**({"name": name_in(table, value)} if table else {}), **asdict(value)}
        else:
            made[f.name] = value
    return made


def to_yaml(run: Any) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(run)))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"no configuration file {path}" + (f"; {nearest(str(path), near)}" if near else ""))
    try:
        node = OmegaConf.load(path)
        given = OmegaConf.to_container(node, resolve=False)
    except Exception as error:  # the readers of YAML raise nearly anything on senseless text
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: {getattr(error, 'problem', None) or _first_line(error)}") from error
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"{path}: the file is empty or not a table of sections")
    return {str(key): value for key, value in given.items()}


def _named(defaults: Any, given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with its name in every swappable section that leaves it out."""
    tables = {f.name: f.metadata["table"] for f in fields(defaults) if "table" in f.metadata}
    return {
        key: {"name": name_in(tables[key], getattr(defaults, key)), **node}
        if key in tables and isinstance(node, dict)
        else node
        for key, node in given.items()
    }


def _overridden(given: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``given`` with each override merged into it."""
    given = deepcopy(given)
    for override in sorted(overrides, key=lambda text: not _names_a_part(text)):  # a name would drop keys before it
        _override(given, override)
    return given


def _override(given: dict[str, Any], text: str) -> None:
    """Merge one ``section.key=value`` into ``given``; a name that is not the section's replaces it, keys and all."""
    key, equals, _ = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{text}' is not an override; write key=value, e.g. train_ldm.steps=1000")
    parts = key.split(".")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text.partition('=')[2]}"]))["value"]  # type: ignore[index, call-overload]
    except Exception as error:
        raise ConfigError(f"'{text}': the value is not readable as YAML") from error
    node = given.get(parts[0], {})
    if len(parts) == 1 or parts[1] == "name":
        if not (isinstance(node, dict) and "name" in node and node["name"] == value):
            given[parts[0]] = {"name": value} if len(parts) > 1 else value
        return
    given[parts[0]] = node
    if isinstance(node, str):
        node = given[parts[0]] = {"name": node}
    if not isinstance(node, dict):
        raise ConfigError(f"{parts[0]} is a value, not a section; it has no '{'.'.join(parts[1:])}'")
    node[".".join(parts[1:])] = value


def _names_a_part(override: str) -> bool:
    key = override.partition("=")[0]
    return "." not in key or key.endswith(".name")


def _refuse_interpolation(node: Any, key: str = "") -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            _refuse_interpolation(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            _refuse_interpolation(value, key)
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{key}: '{node}' is an interpolation, which configurations may not hold; write the value")


def _typed(base: Any, given: dict[str, Any], key: str) -> Any:
    """A copy of the dataclass instance ``base`` with ``given`` laid over it, types checked by OmegaConf."""
    names = [f.name for f in fields(base)]
    for name in given:
        if name not in names:
            raise ConfigError(f"{key}.{name}: no such key; {nearest(name, names)}")
    for name, value in given.items():
        if value is None and getattr(base, name) is not None and "None" not in str(get_type_hints(type(base))[name]):
            raise ConfigError(f"{key}.{name}: null is not allowed here; leave the key out for {getattr(base, name)!r}")
    try:
        node = OmegaConf.merge(OmegaConf.structured(base), given)
        return OmegaConf.to_object(node)
    except OmegaConfBaseException as error:  # a value of a wrong type
        wrong = getattr(error, "full_key", None) or getattr(error, "key", None)
        raise ConfigError(
            f"{key}.{wrong}: {_first_line(error)}" if wrong else f"{key}: {_first_line(error)}"
        ) from error
    except ValueError as error:  # raised by a dataclass's own checks
        raise ConfigError(f"{key}: {_first_line(error)}") from error


def _scalar(value: Any, kind: Any, key: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise ConfigError(f"{key}: {value!r} is not {'an' if kind is int else 'a'} {getattr(kind, '__name__', kind)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
