"""What a weights file says of the training that made it, beside its config and its CLIP."""

import json
from dataclasses import dataclass
from typing import cast, get_args

from fisa_model.mask_generators import ProposalForm
from fisa_model.vocabulary import Vocabulary
from fisa_model.weights import SavedFISA

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

    def to_metadata(self) -> dict[str, str]:
        """As `save_fisa` takes it."""
        metadata = {TEMPLATES_KEY: self.templates}
        if self.vocabulary is not None:
            metadata[VOCABULARY_KEY] = json.dumps(self.vocabulary.to_json(), ensure_ascii=False)
        if self.proposal_form is not None:
            metadata[PROPOSALS_KEY] = self.proposal_form
        return metadata

    @classmethod
    def of(cls, saved: SavedFISA) -> "TrainingFacts":
        """Raises ValueError where what the file says cannot be read."""
        return cls(
            templates=saved.metadata.get(TEMPLATES_KEY, DEFAULT_TEMPLATES),
            vocabulary=_vocabulary_of(saved),
            proposal_form=_form_of(saved),
        )


def _vocabulary_of(saved: SavedFISA) -> Vocabulary | None:
    text = saved.metadata.get(VOCABULARY_KEY)
    try:
        return None if text is None else Vocabulary.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{saved.path}: its vocabulary is damaged ({error}); copy it again") from error


def _form_of(saved: SavedFISA) -> ProposalForm | None:
    form = saved.metadata.get(PROPOSALS_KEY)
    if form is None or form in get_args(ProposalForm):
        return cast(ProposalForm | None, form)
    known = " and ".join(get_args(ProposalForm))
    raise ValueError(f"{saved.path}: trained on {form!r} proposals, this version knows {known}; update it")
