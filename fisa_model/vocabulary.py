"""The words of a run: categories with ids, names and synonyms, and the sentences they are put into."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# The 14 sentences of ViLD (https://arxiv.org/abs/2104.13921), spelled as in FC-CLIP
# (https://github.com/bytedance/fc-clip/blob/2b0bbe2/fcclip/fcclip.py#L26-L41), so that figures compare.
_VILD = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)

LITERAL = "literal"
"""The preset that prompts with the dataset's own names and nothing else, as MaskCLIP does."""

TEMPLATES: dict[str, tuple[str, ...]] = {LITERAL: ("{}",), "photo": ("a photo of a {}.",), "vild": _VILD}


def get_templates(name: str) -> tuple[str, ...]:
    if name not in TEMPLATES:
        raise ValueError(f"unknown prompt templates {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


@dataclass(frozen=True, slots=True)
class Category:
    """One class: a dataset's id, the name it is shown by, and other names that mean the same."""

    id: int
    name: str
    is_thing: bool = True
    synonyms: tuple[str, ...] = ()

    prompted_as: tuple[str, ...] = ()
    """What prompts say in place of `name` and `synonyms`: "wall" where a dataset has "wall-other-merged"."""

    def __post_init__(self) -> None:
        for words in (self.synonyms, self.prompted_as):
            if isinstance(words, str):
                raise ValueError(f"category {self.id}: synonyms must be a tuple of names, got {words!r}")
        names = (self.name, *self.synonyms, *self.prompted_as)
        if odd := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"category {self.id}: a name must be text, got {odd[0]!r}; write it in quotes")
        if any(not name.strip() for name in names):
            raise ValueError(f"category {self.id}: a name is empty in {names!r}; give each class a word")

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """Every name that the text encoder reads for this class."""
        return self.prompted_as or (self.name, *self.synonyms)

    @property
    def short_name(self) -> str:
        """The first word of a name such as ADE20K's "building, edifice"."""
        return self.name.partition(",")[0].strip() or self.name


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Categories in class-index order: class k of a model's output is `categories[k]`."""

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if not self.categories:
            raise ValueError("the vocabulary has no classes; give at least one name")
        _refuse_duplicates([category.id for category in self.categories], "category id")

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(category.id for category in self.categories)

    @property
    def is_thing(self) -> tuple[bool, ...]:
        return tuple(category.is_thing for category in self.categories)

    def index_of_id(self, category_id: int) -> int:
        """The class index of a dataset's category id."""
        for index, category in enumerate(self.categories):
            if category.id == category_id:
                return index
        raise ValueError(
            f"category id {category_id} is not in the vocabulary; its ids are {_shortened(self.ids)}"
        )

    def in_preset(self, templates: str) -> "Vocabulary":
        """The classes as prompts of these templates name them: `literal` takes the dataset's own names."""
        if templates != LITERAL:
            return self
        return Vocabulary(tuple(replace(category, prompted_as=()) for category in self.categories))

    def prompted_by(self, class_list: "Vocabulary") -> "Vocabulary":
        """These classes with the prompt names that a class list has for their ids.

        Ids and names must be those of the list, which may hold more classes than are used here.
        """
        listed = {category.id: category for category in class_list.categories}
        if unknown := [category for category in self.categories if category.id not in listed]:
            raise ValueError(
                f"category id {unknown[0].id} ({unknown[0].name!r}) is not in the class list, whose ids are "
                f"{_shortened(class_list.ids)}; name the class list of the same dataset"
            )
        for category in self.categories:
            name = listed[category.id].name
            if category.name.strip() != name:
                raise ValueError(
                    f"category id {category.id} is {category.name!r} here and {name!r} in the class list; "
                    "name the class list of the same dataset"
                )
        return Vocabulary(tuple(replace(c, prompted_as=listed[c.id].prompt_names) for c in self.categories))

    def shares_name_with(self, other: "Vocabulary") -> tuple[bool, ...]:
        """For each class, whether one of its prompt names is one of the other's; case does not count."""
        known = {_plain(name) for category in other.categories for name in category.prompt_names}
        return tuple(
            not known.isdisjoint(_plain(name) for name in category.prompt_names)
            for category in self.categories
        )

    @classmethod
    def from_names(cls, names: Sequence[str], *, stuff: Sequence[str] = ()) -> "Vocabulary":
        """Classes 1..K, things and then stuff; "couch, sofa" is one class with a synonym."""
        for group in (names, stuff):
            if isinstance(group, str):
                raise ValueError(
                    f"class names must be a list of strings, got the string {group!r}; write [{group!r}]"
                )
            if not isinstance(group, Sequence):
                raise ValueError(
                    f"class names must be a list of strings, got {type(group).__name__}; write ['cat', 'dog']"
                )
        things, names = len(names), [*names, *stuff]
        if odd := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"class names must be text, got {odd[0]!r}; write it in quotes")
        words = [tuple(word.strip() for word in name.split(",") if word.strip()) for name in names]
        if empty := [name for name, parts in zip(names, words, strict=True) if not parts]:
            raise ValueError(f"class name {empty[0]!r} is empty; give each class a word")
        # A word of two classes would split the scores of both.
        _refuse_duplicates(
            [word for parts in words for word in {_plain(part) for part in parts}], "class name"
        )
        return cls(
            tuple(
                Category(k, parts[0], is_thing=k <= things, synonyms=parts[1:])
                for k, parts in enumerate(words, start=1)
            )
        )

    def to_json(self) -> list[dict[str, Any]]:
        """The `categories` list of COCO panoptic JSON, with synonyms, and `prompted_as` where it is set."""
        return [
            {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "synonyms": list(c.synonyms)}
            | ({"prompted_as": list(c.prompted_as)} if c.prompted_as else {})
            for c in self.categories
        ]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> "Vocabulary":
        """Reads COCO `categories`; where one is missing, `isthing` is taken as 1 and names as none."""
        return cls(tuple(_category(row) for row in rows))


def _category(row: Mapping[str, Any]) -> Category:
    missing = [key for key in ("id", "name") if key not in row]
    if missing:
        raise ValueError(f"category {dict(row)!r} lacks {missing[0]!r}; expected id, name, isthing, synonyms")
    return Category(
        int(row["id"]),
        row["name"],
        _flag(row, "isthing"),
        synonyms=_words(row, "synonyms"),
        prompted_as=_words(row, "prompted_as"),
    )


def _flag(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key, 1)
    if str(value) not in ("0", "1", "True", "False"):
        raise ValueError(f"category {row['name']!r}: {key} must be 0 or 1, got {value!r}")
    return str(value) in ("1", "True")


def _words(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    words = row.get(key) or ()
    if isinstance(words, str):
        raise ValueError(f"category {row['name']!r}: {key} must be a list of strings, got {words!r}")
    return tuple(words)


def _refuse_duplicates(values: Sequence[object], what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value!r} occurs more than once; each class needs its own")
        seen.add(value)


def _plain(name: str) -> str:
    """The same text for names that a tokenizer reads as the same."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _shortened(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (f", ... ({len(ids)} in all)" if len(ids) > 10 else "")
