"""The samples of a job, as its settings of [data] describe them.

build.py makes the rest of a task."""

from __future__ import annotations

from ddl.config import Job
from ddl.data import ImageSettings, Splits, TableSettings, open_dataset
from ddl.models.build import EMBEDDING, OF_MEASUREMENTS


def table_settings(job: Job) -> TableSettings:
    """How the job reads tables."""
    data = job.data
    return TableSettings(
        columns=data.columns,
        drop=data.drop,
        types=data.types,
        max_categories=data.max_categories,
        encoding=data.encoding,
        missing=data.missing,
        skips_missing_targets=data.missing_targets == "skip",
        embeds=job.model.name in EMBEDDING,
    )


def build_data(job: Job) -> Splits:
    """The job's training, validation and test samples."""
    data = job.data
    return open_dataset(
        data.source,
        path=data.path,
        targets=data.targets,
        format=data.format,
        validation=data.validation,
        test=data.test,
        stratify=data.stratify,
        seed=job.run.seed,
        dtype=job.train.dtype,
        oversample=data.oversample,
        options=data.options,
        target_kind=data.target_kind,
        loss=job.model.loss,
        classes=job.model.options.get("classes"),
        normalize=data.normalize,
        measured=job.model.name in OF_MEASUREMENTS,
        table=table_settings(job),
        images=ImageSettings(data.image_size, data.resize, data.channels, data.damaged),
        scale_targets=data.scale_targets,
    )
