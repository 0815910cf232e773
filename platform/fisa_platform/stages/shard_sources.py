"""Where the images of stage `shard` come from: what a spec says of each source, and how it is read."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from fisa_model.class_lists import ClassListName
from fisa_model.config import check_choices

if TYPE_CHECKING:
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.sources.index import Index
    from fisa_platform.sources.semantic import LabelValues

_WORDS_WITHOUT_LIST = "prompt_names_uri is {!r} but class_list is none; name the list it is for"


class Source(Protocol):
    """One of the dataclasses below."""

    def folders(self) -> list[str]:
        """Locations that are read from, in which no output may lie."""

    def read(self) -> Index:
        """What the source holds, before any image is opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoPanoptic:
    """A data set in COCO panoptic form."""

    images_uri: str
    """Folder or zip of the images."""

    panoptic_uri: str
    """Folder or zip of the panoptic PNGs."""

    json_uri: str
    """The JSON file with images, annotations and categories."""

    class_list: (
        Literal["coco_panoptic", "coco_stuff", "ade20k_150", "mapillary_vistas", "cityscapes"] | None
    ) = None
    """The shipped list whose words are prompted with, in place of raw names such as 'wall-other-merged'."""

    prompt_names_uri: str | None = None
    """A file of other words for that list, in the form of FC-CLIP's `*_with_prompt_eng.txt`."""

    def __post_init__(self) -> None:
        if self.prompt_names_uri is not None and self.class_list is None:
            raise ValueError(_WORDS_WITHOUT_LIST.format(self.prompt_names_uri))

    def folders(self) -> list[str]:
        return [self.images_uri, self.panoptic_uri]

    def read(self) -> Index:
        from fisa_platform.sources.coco import read_coco_panoptic

        index = read_coco_panoptic(self.images_uri, self.panoptic_uri, self.json_uri)
        if self.class_list is None:
            return index
        assert index.vocabulary is not None
        class_list = _load_class_list(self.class_list, self.prompt_names_uri)
        return replace(index, vocabulary=index.vocabulary.prompted_by(class_list))


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticMaps:
    """A data set for semantic segmentation: images and label maps, each class in an image one segment."""

    images_uri: str
    """Folder of the images, which may have folders; or a zip."""

    labels_uri: str
    """Folder or zip of the label maps: PNG or TIFF of one value a pixel, named like their images. 255
    is void, and 65535; so is 0 where classes start at 1."""

    class_list: ClassListName | None = None
    """The shipped list of the classes; or else give `classes`."""

    classes: tuple[str, ...] = ()
    """The classes in the order of their values, which become ids; synonyms as in "person, pedestrian"."""

    prompt_names_uri: str | None = None
    """A file of other words for `class_list`, in the form of FC-CLIP's `*_with_prompt_eng.txt`."""

    values: Literal["indices", "ids"] = "indices"
    """What values are: a class's place in the list, from 0 on; or its category id, all others being void."""

    offset: int = 0
    """By how much values are larger than that: 1 where 0 is void and the first class is 1."""

    image_suffix: str | None = None
    """What names of images end in, `_leftImg8bit.png` in Cityscapes; none is any image."""

    label_suffix: str | None = None
    """What names of label maps end in, `_gtFine_labelIds.png` in Cityscapes; none is .png or .tif."""

    def __post_init__(self) -> None:
        check_choices(self)
        if (self.class_list is None) == (not self.classes):
            got = "both; write `class_list: null` or `classes: []`" if self.classes else "none"
            raise ValueError(f"exactly one of class_list and classes must be given, got {got}")
        if self.prompt_names_uri is not None and self.class_list is None:
            raise ValueError(_WORDS_WITHOUT_LIST.format(self.prompt_names_uri))
        if self.values == "ids" and self.class_list is None:
            raise ValueError("values 'ids' are those of a class_list; with `classes`, use 'indices'")
        for name in ("image_suffix", "label_suffix"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty; leave it out for any suffix, or give what names end in")
        if self.images_uri == self.labels_uri and None in (self.image_suffix, self.label_suffix):
            raise ValueError(
                f"images_uri and labels_uri are both {self.images_uri}; give image_suffix and label_suffix, "
                "by which names of images and of label maps differ"
            )
        self._check_offset()

    def _check_offset(self) -> None:
        from fisa_platform.sources.semantic import LARGEST_VALUE

        values = self.label_values().category_ids
        if min(values) < 0 or max(values) > LARGEST_VALUE:
            raise ValueError(
                f"offset is {self.offset}, with which the classes have the values {min(values)} to "
                f"{max(values)}; they must be 0 to {LARGEST_VALUE}"
            )

    def folders(self) -> list[str]:
        return [self.images_uri, self.labels_uri]

    def read(self) -> Index:
        from fisa_platform.sources.semantic import read_semantic

        return read_semantic(
            self.images_uri,
            self.labels_uri,
            self.vocabulary(),
            image_suffix=self.image_suffix,
            label_suffix=self.label_suffix,
        )

    def label_values(self) -> LabelValues:
        """What the values of the label maps mean."""
        from fisa_platform.sources.semantic import LabelValues

        ids = self.vocabulary(with_own_words=False).ids
        values = ids if self.values == "ids" else range(len(ids))
        category_ids = {value + self.offset: id_ for value, id_ in zip(values, ids, strict=True)}
        return LabelValues(category_ids, others_are_void=self.values == "ids")

    def vocabulary(self, *, with_own_words: bool = True) -> Vocabulary:
        """The classes; all are stuff, for label maps do not tell things apart."""
        from fisa_model.vocabulary import Vocabulary

        if self.class_list is None:
            named = Vocabulary.from_names([], stuff=self.classes).categories
            values = range(self.offset, self.offset + len(named))
            return Vocabulary(tuple(replace(c, id=value) for c, value in zip(named, values, strict=True)))
        words_uri = self.prompt_names_uri if with_own_words else None
        categories = _load_class_list(self.class_list, words_uri).categories
        return Vocabulary(tuple(replace(category, is_thing=False) for category in categories))


@dataclass(frozen=True, kw_only=True, slots=True)
class RefCOCO:
    """A split of RefCOCO, RefCOCO+ or RefCOCOg: objects, and sentences that people refer to them by."""

    images_uri: str
    """Folder or zip of COCO's train2014 images."""

    refs_uri: str
    """`refs(unc).p` or `refs(umd).p`, or the same list as JSON."""

    instances_uri: str
    """The `instances.json` beside it."""

    split: str = "val"
    """A split that the references name: RefCOCO and RefCOCO+ have train, val, testA and testB."""

    def folders(self) -> list[str]:
        return [self.images_uri]

    def read(self) -> Index:
        from fisa_platform.sources.refcoco import read_refcoco

        return read_refcoco(self.images_uri, self.refs_uri, self.instances_uri, self.split)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Images without ground truth."""

    images_uri: str
    """Folder of the images, which may have folders; or a zip."""

    def folders(self) -> list[str]:
        return [self.images_uri]

    def read(self) -> Index:
        from fisa_platform.sources.index import read_image_folder

        return read_image_folder(self.images_uri)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyWorld:
    """Generated scenes."""

    scenes: int
    """How many."""

    names: Literal["seen", "all"]
    """Which names appear: those that training may use, or all."""

    seed: int = 0
    """Another seed, other scenes."""

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise ValueError(f"scenes must be at least 1, got {self.scenes}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def folders(self) -> list[str]:
        return []

    def read(self) -> Index:
        from fisa_platform.sources import toyworld

        return toyworld.index(self.seed, self.scenes, self.names)


def _load_class_list(name: str, prompt_names_uri: str | None) -> Vocabulary:
    from fisa_model.class_lists import load_class_list
    from fisa_platform import storage

    if prompt_names_uri is None:
        return load_class_list(name)
    with tempfile.TemporaryDirectory() as folder:
        path = storage.download(prompt_names_uri, Path(folder) / "prompt_names.txt")
        return load_class_list(name, path)
