"""What a weights file says of the training that made it, beside its config and its CLIP."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from fisa_model.mask_generators import ProposalForm
from fisa_model.vocabulary import TEMPLATES, Vocabulary, get_templates

TEMPLATES_KEY, VOCABULARY_KEY, PROPOSALS_KEY = "templates", "vocabulary", "proposals"
DEFAULT_TEMPLATES = "vild"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFacts:
    templates: str = DEFAULT_TEMPLATES
    """Preset of the sentences that class names were put into."""

    vocabulary: Vocabulary | None = None
    """Classes that were trained on; None where the file does not say."""

    proposal_form: ProposalForm | None = None
    """Form of the proposals; None where they came straight from a network, or the file does not say."""

    def __post_init__(self) -> None:
        get_templates(self.templates)

    def to_metadata(self) -> dict[str, str]:
        """As texts for the header of a safetensors file."""
        metadata = {TEMPLATES_KEY: self.templates}
        if self.vocabulary is not None:
            metadata[VOCABULARY_KEY] = json.dumps(self.vocabulary.to_json(), ensure_ascii=False)
        if self.proposal_form is not None:
            metadata[PROPOSALS_KEY] = self.proposal_form
        return metadata

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> "TrainingFacts":
        """Reads what `to_metadata` wrote into the file at `path`.

        Raises:
            ValueError: what the file says is damaged, or of a later version.
        """
        templates = metadata.get(TEMPLATES_KEY, DEFAULT_TEMPLATES)
        if templates not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            raise ValueError(f"{path}: trained with templates {templates!r}, this version knows {known}")
        return cls(
            templates=templates,
            vocabulary=_read_vocabulary(metadata.get(VOCABULARY_KEY), path),
            proposal_form=_read_form(metadata.get(PROPOSALS_KEY), path),
        )


def _read_vocabulary(text: str | None, path: Path) -> Vocabulary | None:
    try:
        return None if text is None else Vocabulary.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: its vocabulary is damaged ({error}); copy it again") from error


def _read_form(form: str | None, path: Path) -> ProposalForm | None:
    if form is None or form in get_args(ProposalForm):
        return cast(ProposalForm | None, form)
    known = " and ".join(get_args(ProposalForm))
    raise ValueError(f"{path}: trained on {form!r} proposals, this version knows {known}; update it")
