"""The classes of the public benchmarks: ids, own names, thing or stuff, and the names to prompt with.

One file a dataset, in class-index order; `SOURCES.md` says where their words come from.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from fisa_model.vocabulary import Category, Vocabulary

ClassListName = Literal[
    "coco_panoptic",
    "coco_stuff",
    "ade20k_150",
    "ade20k_847",
    "pascal_context_59",
    "pascal_context_459",
    "mapillary_vistas",
    "cityscapes",
]

CLASS_LISTS: tuple[str, ...] = get_args(ClassListName)

_KINDS = {"thing": True, "stuff": False}
_NO_CLASS = "invalid_class_id"
"""What FC-CLIP's files say at an index that no class has."""


def load_class_list(name: str, prompt_names_path: Path | str | None = None) -> Vocabulary:
    """The classes of a dataset, with our prompt names or those of a file that `read_prompt_names` reads."""
    if name not in CLASS_LISTS:
        raise ValueError(f"unknown class list {name!r}; choose one of {', '.join(CLASS_LISTS)}")
    text = (Path(__file__).parent / f"{name}.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    shipped = Vocabulary(
        tuple(
            Category(int(category_id), own_name, _KINDS[kind], prompted_as=tuple(words.split(", ")))
            for category_id, kind, own_name, words in rows
        )
    )
    if prompt_names_path is None:
        return shipped
    names = read_prompt_names(prompt_names_path)
    if len(names) != len(shipped):
        raise ValueError(
            f"{prompt_names_path}: has {len(names)} classes, {name} has {len(shipped)}; "
            "give the file of the same dataset"
        )
    pairs = zip(shipped.categories, names, strict=True)
    return Vocabulary(tuple(replace(category, prompted_as=words) for category, words in pairs))


def read_prompt_names(path: Path | str) -> list[tuple[str, ...]]:
    """Reads names in the form of FC-CLIP's `*_with_prompt_eng.txt`: a class a line, `index:name,synonym`.

    The files say no class ids, so their classes are taken in their order; it is checked that indices ascend.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as prompt names: {error}") from error
    names, last = [], -1
    for number, line in enumerate(lines, start=1):
        index, colon, words = line.partition(":")
        if not (colon and index.strip().isdecimal() and all(word.strip() for word in words.split(","))):
            raise ValueError(f"{path}, line {number}: expected 'index:name,synonym', got {line!r}")
        if int(index) <= last:
            raise ValueError(f"{path}, line {number}: index {index} follows {last}; sort the lines by index")
        last = int(index)
        if words.strip() != _NO_CLASS:
            names.append(tuple(word.strip() for word in words.split(",")))
    return names
