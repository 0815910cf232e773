"""What workers of stage `evaluate` do: some name masks and make results of them, others write and score."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from fisa_model.mask_generators import MaskProposals
    from fisa_model.prediction import Prediction
    from fisa_model.predictor import FISAPredictor
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.evaluation.mask_accuracy import TrueMasks
    from fisa_platform.stages.evaluate import EvaluateConfig

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Named:
    """A batch over one vocabulary."""

    predictions: list[Prediction]
    """Of each image's proposals."""

    true_masks: list[list[int]]
    """The class index that each true mask of each image gets; no image where that is not asked."""


class Evaluator:
    """Loads the classifier once for each actor; rows of the images table in, failable rows of EVALUATED out.

    `vocabularies` are those of the images table and of each further ground truth.
    """

    def __init__(self, config: EvaluateConfig, vocabularies: Sequence[Vocabulary]) -> None:
        from fisa_platform.classifier import load_predictor
        from fisa_platform.rows import ProposalRows, TruthRows

        self.config = config
        self.vocabularies = list(vocabularies)
        self.in_model = threading.Lock()
        self.proposals = ProposalRows(config.proposals_uri)
        self.other_truths = [TruthRows(uri) for uri in config.other_truth_uris.values()]
        self.predictor = load_predictor(config.classifier) if config.classifier else None
        encode = self.predictor.encode_vocabulary if self.predictor else None
        self.class_tokens = [encode(vocabulary) for vocabulary in vocabularies] if encode else []

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_model.pictures import decode_image
        from fisa_platform.schema import EVALUATED
        from fisa_platform.tables import failable_table

        done: list[Row] = []
        keys: list[Row] = []
        images: list[NDArray[np.uint8]] = []
        proposals: list[MaskProposals] = []
        truths: list[list[Row]] = []
        for row in batch.to_pylist():
            key = {"image_id": row["image_id"], "file_name": row["file_name"]}
            try:
                image, masks = decode_image(row["image"]), self.proposals[row["image_id"]]
                others = [truth[row["image_id"]] for truth in self.other_truths]
            except ValueError as error:
                done.append({**key, "reason": str(error)})
                continue
            keys.append({**key, "height": image.shape[0], "width": image.shape[1]})
            images.append(image)
            proposals.append(masks)
            truths.append([row, *others])
        if keys:
            columns = self._evaluate(images, proposals, list(zip(*truths, strict=True)))
            for key, (first, *others) in zip(keys, zip(*columns, strict=True), strict=True):
                done.append({**key, **first, "by_other_truth": others})
        return failable_table(EVALUATED, done)

    def _evaluate(
        self,
        images: list[NDArray[np.uint8]],
        proposals: list[MaskProposals],
        truths: list[tuple[Row, ...]],
    ) -> list[list[Row]]:
        """For each ground truth and each image, whose rows `truths` are, values of `schema.BY_TRUTH`."""
        from fisa_model.device import own_stream
        from fisa_platform.evaluation.oracle import oracle_prediction

        if self.predictor is None:
            return [
                [
                    self._result(oracle_prediction(masks, row, vocabulary), row, vocabulary)
                    for masks, row in zip(proposals, rows, strict=True)
                ]
                for rows, vocabulary in zip(truths, self.vocabularies, strict=True)
            ]
        true_masks = [self._true_masks(rows, of) for rows, of in zip(truths, self.vocabularies, strict=True)]
        with self.in_model:
            named = self._classify(self.predictor, images, proposals, true_masks)
        with own_stream(self.predictor.model.device):
            results = [
                [self._result(*pair, vocabulary) for pair in zip(of.predictions, rows, strict=True)]
                for of, rows, vocabulary in zip(named, truths, self.vocabularies, strict=True)
            ]
        for of_truth, masks, of in zip(results, true_masks, named, strict=True):
            for result, truth, names in zip(of_truth, masks, of.true_masks, strict=False):
                result |= {"mask_classes": truth.classes, "mask_names": names}
        return results

    def _classify(
        self,
        predictor: FISAPredictor,
        images: list[NDArray[np.uint8]],
        proposals: list[MaskProposals],
        true_masks: list[list[TrueMasks]],
    ) -> list[_Named]:
        """Proposals and true masks over each vocabulary, in one pass of the image tower.

        The images' features, some GB of a GPU, are gone when it returns.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        features, prepared = predictor.encode_images(images), predictor.prepare(proposals, sizes)
        named = []
        for tokens, truths in zip(self.class_tokens, true_masks, strict=True):
            names: list[list[int]] = []
            if truths:
                masks = predictor.prepare([truth.as_proposals() for truth in truths], sizes)
                found = predictor.classify(features, masks, tokens)
                names = [prediction.class_probs.argmax(dim=-1).tolist() for prediction in found]
            named.append(_Named(predictor.classify(features, prepared, tokens), names))
        return named

    def _true_masks(self, rows: Sequence[Row], vocabulary: Vocabulary) -> list[TrueMasks]:
        """Of each image; of none where they are not asked for."""
        from fisa_platform.evaluation.mask_accuracy import true_masks
        from fisa_platform.panoptic_png import decode_panoptic

        merge = self.config.mask_accuracy
        if merge is None:
            return []
        return [
            true_masks(decode_panoptic(row["panoptic"]), row["segments_info"], vocabulary, merge=merge)
            for row in rows
        ]

    def _result(self, prediction: Prediction, truth: Row, vocabulary: Vocabulary) -> Row:
        from fisa_platform.classifier import prediction_row
        from fisa_platform.evaluation.instances import found_instances
        from fisa_platform.panoptic_png import encode_panoptic

        sets_of_rules = [self.config.panoptic, *self.config.other_rules.values()]
        # Semantic labels and instances depend on objectness alone.
        by_objectness = {
            objectness: {
                "semantic": encode_panoptic(prediction.semantic(objectness=objectness)),
                "instances": found_instances(prediction, vocabulary, objectness)
                if self.config.instance_ap
                else None,
            }
            for objectness in {rules.objectness for rules in sets_of_rules}
        }
        first, *others = (
            {**prediction_row(prediction, vocabulary, rules), **by_objectness[rules.objectness]}
            for rules in sets_of_rules
        )
        return {
            **first,
            "by_other_rules": others,
            "true_panoptic": truth["panoptic"],
            "true_segments_info": truth["segments_info"],
            "mask_classes": None,
            "mask_names": None,
        }


def write_and_score(
    batch: pa.Table, *, output_uri: str, vocabularies: Sequence[Vocabulary], sets_of_rules: int
) -> pa.Table:
    """Write a file of predictions, and count its metrics while ground truth is at hand."""
    import pyarrow as pa

    from fisa_platform.evaluation.summary import Metrics, score_image
    from fisa_platform.schema import PREDICTIONS
    from fisa_platform.tables import write_batch

    metrics = [[Metrics(vocabulary) for _ in range(sets_of_rules)] for vocabulary in vocabularies]
    for row in batch.to_pylist():
        if row["reason"] is None:
            results = [row, *({**row, **other} for other in row["by_other_truth"])]
            for result, vocabulary, counts in zip(results, vocabularies, metrics, strict=True):
                score_image(result, vocabulary, counts)
    written = write_batch(batch, output_uri=output_uri, name="predictions", schema=PREDICTIONS)
    # The counts belong to the whole batch, so they stand in its first row.
    counted = [pickle.dumps(metrics), *[None] * written.num_rows][: written.num_rows]
    return written.append_column("metrics", pa.array(counted, pa.large_binary()))
