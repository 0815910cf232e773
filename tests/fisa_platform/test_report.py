import html.parser
import re

import numpy as np
import pytest
from PIL import Image

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform.rendering import draw_segments, encode_picture
from fisa_platform.report import Panel, Picture, Provenance, Report, System, Word, render_report, words_of

VOCABULARY = Vocabulary(
    (
        Category(1, "striped red triangle"),
        Category(2, "dotted blue disc"),
        Category(9, "grass", is_thing=False),
        Category(10, "brick", is_thing=False),
    )
)


MISSING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def scene(seed):
    """Grass, with brick above it, a disc and a triangle: an image and its ids."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:224, :224]
    ids = np.where(rows < 90 + 20 * seed, 4, 3).astype(np.int32)
    ids[(rows - 70 - 30 * seed) ** 2 + (columns - 60) ** 2 < 1600] = 2
    ids[(rows > 110) & (rows < 190) & (abs(columns - 150) < (rows - 110) / 2)] = 1
    base = np.array([[0, 0, 0], [200, 60, 50], [60, 80, 190], [80, 150, 70], [160, 90, 70]])[ids]
    stripes = 25 * ((columns // 6 % 2)[..., None] * (ids == 1)[..., None])
    noise = rng.integers(-18, 18, size=ids.shape)[..., None]
    return (base + stripes + noise).clip(0, 255).astype(np.uint8), ids


def panel(seed):
    image, ids = scene(seed)
    categories = {1: 1, 2: 2, 3: 9, 4: 10}
    wrong = {1: 2, 2: 2, 3: 10, 4: 10}
    drawn = {
        "ground truth": draw_segments(image, ids, segments(categories), VOCABULARY),
        "frozen CLIP": draw_segments(image, np.where(ids == 3, 4, ids), segments(wrong), VOCABULARY),
        "FISA": draw_segments(image, np.where(ids == 2, 0, ids), segments(categories), VOCABULARY),
    }
    pictures = [Picture(caption="image", data=encode_picture(Image.fromarray(image), "JPEG"))]
    pictures += [Picture(caption=name, data=encode_picture(picture)) for name, picture in drawn.items()]
    return Panel(title=f"scene-{seed}", pictures=pictures)


def segments(categories):
    return [{"id": key, "category_id": category} for key, category in categories.items()]


def scores(start):
    values = {"PQ": start, "SQ": start + 30, "RQ": start + 10, "AP": start + 15, "mIoU": start + 20}
    return {
        subset: {**values, "PQ": start + 2 * n} for n, subset in enumerate(("all", "seen", "unseen", "thing"))
    }


REPORT = Report(
    title="FISA on <toy world>",
    summary="Trained 200 iterations on 3 seen names & evaluated on 2 scenes.",
    systems=[System(name="Frozen CLIP", scores=scores(12.34)), System(name="FISA", scores=scores(41.2))],
    loss=[(step, 5 / (step + 10)) for step in range(100)],
    panels=[panel(0), panel(1)],
    words=words_of(VOCABULARY, seen_ids={1, 9, 10}),
    seconds={"shard": 3.21, "train": 75.0, "evaluate": 3 * 3600 + 61},
    provenance=[Provenance(title="versions", entries={"torch": "2.15", "digest": "sha256:" + "0" * 64})],
)


@pytest.fixture(scope="module")
def page():
    return render_report(REPORT)


class Elements(html.parser.HTMLParser):
    """Collects tags with their attributes, and checks that each is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page):
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    return elements.found


def cells(page):
    """The rows of the results table, by their heading."""
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in body.split("</tr>")[:-1]]
    return {row[0]: row[1:] for row in rows}


def test_the_page_is_well_formed_and_loads_nothing(page):
    found = parsed(page)
    assert not {tag for tag, _ in found} & {"script", "link", "iframe", "object"}
    sources = [
        value for _, attrs in found for key, value in attrs.items() if key in ("src", "srcset", "href")
    ]
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import", page[page.index("<style>") : page.index("</style>")])


def test_text_is_escaped(page):
    assert "FISA on &lt;toy world&gt;" in page
    assert "seen names &amp; evaluated" in page
    assert "<toy world>" not in page


def test_the_table_compares_the_systems(page):
    table = cells(page)
    assert list(table) == ["all", "seen", "unseen", "thing"]
    assert table["all"][:6] == ["12.3", "41.2", "+28.9", "42.3", "71.2", "+28.9"]
    assert table["unseen"][:3] == ["16.3", "45.2", "+28.9"]


def test_a_number_that_is_missing_is_a_dash():
    poorer = {"all": {"PQ": 1.0}, "stuff": {"mIoU": 50.0}}
    page = render_report(
        Report(
            title="t",
            summary="s",
            systems=[System(name="a", scores=scores(2)), System(name="b", scores=poorer)],
        )
    )
    assert cells(page)["all"][:6] == ["2.0", "1.0", f"{MINUS}1.0", "32.0", MISSING, MISSING]
    assert cells(page)["stuff"][-3:] == [MISSING, "50.0", MISSING]


def test_one_system_has_no_differences_and_empty_parts_are_left_out():
    page = render_report(Report(title="t", summary="s", systems=[System(name="oracle", scores=scores(50))]))
    parsed(page)
    assert cells(page)["all"] == ["50.0", "80.0", "60.0", "65.0", "70.0"]
    for heading in ("Loss", "Pictures", "Words", "Provenance"):
        assert f"<h2>{heading}</h2>" not in page


def test_pictures_are_inside_with_what_they_show(page):
    images = [attrs for tag, attrs in parsed(page) if tag == "img"]
    assert len(images) == 8
    assert images[0]["src"].startswith("data:image/jpeg;base64,/9j/")
    assert images[1]["src"].startswith("data:image/png;base64,iVBOR")
    assert images[1]["alt"] == "scene-0: ground truth"


def test_the_loss_curve_is_drawn_in_the_colour_of_the_text(page):
    curve = page[page.index("<svg") : page.index("</svg>")]
    assert "currentColor" in curve
    assert ">loss</text>" in curve


def test_the_same_report_gives_the_same_page(page):
    assert render_report(REPORT) == page


def test_words_are_grouped_by_training_and_coloured_as_in_pictures(page):
    words = words_of(VOCABULARY, seen_ids={1})
    assert [(word.name, word.seen) for word in words[:2]] == [
        ("striped red triangle", True),
        ("dotted blue disc", False),
    ]
    assert 'Trained on <span class="count">3</span>' in page
    assert 'Never trained on <span class="count">1</span>' in page
    assert words_of(VOCABULARY)[0] == Word(name="striped red triangle", colour=words[0].colour, seen=None)


def test_time_and_provenance_are_told(page):
    for text in ("3.2 s", "1 min 15 s", "3 h 1 min", "sha256:" + "0" * 64):
        assert text in page
