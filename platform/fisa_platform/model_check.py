"""What is wrong with the models of a job, found from their shapes alone, without weights or workers."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

from fisa_model.config import FISAConfig
from fisa_platform.decode import join_path


def model_problems(config: Any) -> list[str]:
    """A sentence for each model in a stage's config that could not be built."""
    problems = ((path, _problem(model)) for path, model in _models(config, "config"))
    return [f"{path}: {problem}" for path, problem in problems if problem is not None]


def _models(value: Any, path: str) -> Iterator[tuple[str, FISAConfig]]:
    if isinstance(value, FISAConfig):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for member in dataclasses.fields(value):
            yield from _models(getattr(value, member.name), join_path(path, member.name))


@cache  # the cells of an experiment share their models
def _problem(model: FISAConfig) -> str | None:
    from fisa_model.clip_weights import is_described_here
    from fisa_model.fisa import count_parameters

    if not is_described_here(model.clip):
        return None  # known where it is downloaded
    try:
        count_parameters(model)
    except ValueError as error:
        return str(error)
    return None
