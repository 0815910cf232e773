"""The words of a run: categories with ids, names and synonyms, and the sentences they are put into."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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

TEMPLATES: dict[str, tuple[str, ...]] = {"literal": ("{}",), "photo": ("a photo of a {}.",), "vild": _VILD}


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

    def __post_init__(self) -> None:
        if any(not name.strip() for name in self.prompt_names):
            raise ValueError(
                f"category {self.id}: a name is empty in {self.prompt_names!r}; give each class a word"
            )

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """Every name that the text encoder reads for this class."""
        return (self.name, *self.synonyms)


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

    @classmethod
    def from_names(cls, names: Sequence[str], *, stuff: Sequence[str] = ()) -> "Vocabulary":
        """Classes 1..K, things and then stuff; "couch, sofa" is one class with a synonym."""
        for group in (names, stuff):
            if isinstance(group, str):
                raise ValueError(
                    f"class names must be a list of strings, got the string {group!r}; write [{group!r}]"
                )
        things, names = len(names), [*names, *stuff]
        words = [tuple(word.strip() for word in name.split(",") if word.strip()) for name in names]
        if empty := [name for name, parts in zip(names, words, strict=True) if not parts]:
            raise ValueError(f"class name {empty[0]!r} is empty; give each class a word")
        _refuse_duplicates([parts[0].lower() for parts in words], "class name")
        return cls(
            tuple(
                Category(k, parts[0], is_thing=k <= things, synonyms=parts[1:])
                for k, parts in enumerate(words, start=1)
            )
        )

    def to_json(self) -> list[dict[str, Any]]:
        """The `categories` list of COCO panoptic JSON, with synonyms."""
        return [
            {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "synonyms": list(c.synonyms)}
            for c in self.categories
        ]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> "Vocabulary":
        """Reads COCO `categories`; `isthing` is taken as 1 and `synonyms` as none where they are missing."""
        return cls(tuple(_category(row) for row in rows))


def _category(row: Mapping[str, Any]) -> Category:
    missing = [key for key in ("id", "name") if key not in row]
    if missing:
        raise ValueError(f"category {dict(row)!r} lacks {missing[0]!r}; expected id, name, isthing, synonyms")
    synonyms = row.get("synonyms") or ()
    if isinstance(synonyms, str):
        raise ValueError(f"category {row['name']!r}: synonyms must be a list of strings, got {synonyms!r}")
    return Category(int(row["id"]), str(row["name"]), bool(row.get("isthing", 1)), tuple(synonyms))


def _refuse_duplicates(values: Sequence[object], what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value!r} occurs more than once; each class needs its own")
        seen.add(value)


def _shortened(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (f", ... ({len(ids)} in all)" if len(ids) > 10 else "")
