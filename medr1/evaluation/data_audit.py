"""The audit of the data of a run: what baselines without a model score, leaks, and images that data sets share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import permutations
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import track

from medr1.data.dataset import Dataset
from medr1.data.image_index import ImageFacts, group_by_content, make_thumbnail
from medr1.domain.records import UNSPECIFIED, ImageSource, Record, in_order
from medr1.evaluation.option_prior import OptionPrior
from medr1.evaluation.surface_cues import CueCounts, count_cues, expected_accuracy

_SIDE = 64  # pixels, at which images are drawn that have no size of their own
_PROGRESS_FROM = 500


@dataclass(frozen=True, slots=True)
class SetAudit:
    """One data set. All but ``train`` is about its test records; accuracies are fractions.

    ``letter_prior``: accuracy of the letter that is most often correct in the test records themselves. ``option_prior``
    and ``surface_cues``: expected accuracies of ``OptionPrior``, fitted to the training records (None without any), and
    of ``surface_cues``, with a uniform guess between ties. ``leaked_images``: test images whose content is also in
    training; ``leaked_records``: records that show one.
    """

    train: int
    test: int
    images: int
    options: Mapping[int, int]
    answers: Mapping[str, int]
    chance: float
    letter_prior: float
    option_prior: float | None
    surface_cues: float
    cues: CueCounts
    leaked_images: int
    leaked_records: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Image contents of the test records of ``test`` that the training or test records of ``other`` show.

    ``in_either``: those in training, in test or in both.
    """

    test: str
    other: str
    images: int
    in_training: int
    in_test: int
    in_either: int


@dataclass(frozen=True, slots=True)
class DataAudit:
    """The audit of data. ``sets`` has one entry, or one for each benchmark; ``images``: different images compared."""

    data: str
    fingerprint: str
    images: int
    sets: Mapping[str, SetAudit]
    overlaps: Sequence[Overlap]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable types only."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def audit_data(data: Dataset, name: str) -> DataAudit:
    """Audits the records of ``data``. Decodes each image once, to compare them by content (see ``image_index``).

    ``name`` stands for data of a single set.
    """
    content = _contents([*data.train, *data.test])

    def shown(records: Iterable[Record]) -> set[str]:
        return {content[image.key] for record in records for image in record.images}

    names = in_order(record.benchmark for record in data.test)
    train = {name: [r for r in data.train if r.benchmark == name] for name in names}
    test = {name: [r for r in data.test if r.benchmark == name] for name in names}
    trained, tested = ({name: shown(part[name]) for name in names} for part in (train, test))
    sets = {
        of_set: SetAudit(
            train=len(train[of_set]),
            test=len(test[of_set]),
            images=len(tested[of_set]),
            options=dict(sorted(Counter(len(r.options) for r in test[of_set]).items())),
            answers=dict(sorted((answers := Counter(r.answer for r in test[of_set])).items())),
            chance=fmean(r.chance for r in test[of_set]),
            letter_prior=max(answers.values()) / len(test[of_set]),
            option_prior=OptionPrior.fit(train[of_set]).expected_accuracy(test[of_set]) if train[of_set] else None,
            surface_cues=expected_accuracy(test[of_set]),
            cues=count_cues(test[of_set]),
            leaked_images=len(tested[of_set] & trained[of_set]),
            leaked_records=sum(not trained[of_set].isdisjoint(shown([r])) for r in test[of_set]),
        )
        for of_set in names
    }
    overlaps = [
        Overlap(
            test=a,
            other=b,
            images=len(tested[a]),
            in_training=len(tested[a] & trained[b]),
            in_test=len(tested[a] & tested[b]),
            in_either=len(tested[a] & (trained[b] | tested[b])),
        )
        for a, b in permutations(names, 2)
    ]
    return DataAudit(
        data=name,
        fingerprint=data.fingerprint,
        images=len(set(content.values())),
        sets={name if of_set == UNSPECIFIED else of_set: found for of_set, found in sets.items()},
        overlaps=overlaps,
    )


def _contents(records: Iterable[Record]) -> dict[str, str]:
    """The content id of each image, by its key; the same for equal images of different sets."""
    images = {image.key: image for record in records for image in record.images}
    console, hide = Console(stderr=True), len(images) < _PROGRESS_FROM
    with ThreadPoolExecutor(4) as pool:
        thumbnails = pool.map(_thumbnail, images.values())
        facts = [
            ImageFacts(key, 0, 0, thumbnail=thumbnail)
            for key, thumbnail in track(
                zip(images, thumbnails, strict=True),
                "Comparing images",
                total=len(images),
                console=console,
                disable=hide,
            )
        ]
    return group_by_content(facts)


def _thumbnail(image: ImageSource) -> bytes:
    return make_thumbnail(image.load(_SIDE))
