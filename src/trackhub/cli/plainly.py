"""What the command line has to say as strict JSON: plain values, times and records for machines.

Apart from the printing for people so that the shape of each answer is in one place. NaN and infinities, which JSON does
not have, are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from trackhub.cli.overview import Overview
from trackhub.errors import SettingsError
from trackhub.importing import Imported
from trackhub.prune import Pruned
from trackhub.readout import WORDS, Readout
from trackhub.records import Deliverable, MetricsLogged, Record, RunEnded, StoredFile
from trackhub.report import BackendStanding, DeliveryReport
from trackhub.verifying import Verification


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """A value as strict JSON in UTF-8.

    >>> json_bytes({"loss": float("nan"), "steps": [1, 2]})
    b'{"loss": "NaN", "steps": [1, 2]}'
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        text = json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", errors="backslashreplace")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value


def iso_time(time_ns: int) -> str:
    """A time as ISO 8601 in UTC, to the nanosecond.

    >>> iso_time(1_795_253_400_123_456_789)
    '2026-11-21T09:30:00.123456789Z'
    """
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def kinds_of(words: Iterable[str]) -> tuple[type[Record], ...]:
    """The kinds of record that a person names, in the singular or the plural: "metrics", "image", "roc_curves".

    Raises:
        SettingsError: There is no such kind; the message lists those there are.
    """
    known = {_kind(kind): kind for kind in WORDS}
    chosen = []
    for word in words:
        plain = word.strip().lower().replace(" ", "_")
        found = next(
            (
                kind
                for name, kind in known.items()
                if plain.removesuffix("s") == name.removesuffix("s") or plain.replace("matrices", "matrix") == name
            ),
            None,
        )
        if found is None:
            raise SettingsError(f"no kind of record is called {word!r} (there are: {', '.join(known)})")
        chosen.append(found)
    return tuple(chosen)


def plain_record(record: Deliverable | RunEnded) -> dict[str, Any]:
    """A record with its kind, time and fields."""
    head = {"kind": _kind(type(record)), "time": iso_time(record.time_ns)}
    if isinstance(record, MetricsLogged):
        return {**head, "step": record.step, "values": record.values}
    fields = {name: getattr(record, name) for name in record.__struct_fields__ if name != "time_ns"}
    if isinstance(file := fields.get("file"), StoredFile):
        fields["file"] = msgspec.structs.asdict(file)
    return {**head, **fields}


def _kind(record: type[Record]) -> str:
    return WORDS[record].replace(" ", "_").lower()


def plain_overview(one: Overview) -> dict[str, Any]:
    """A run at a glance."""
    manifest, amount = one.manifest, one.amount
    return {
        "id": manifest.id,
        "name": manifest.name,
        "project": manifest.project,
        "parent_id": manifest.parent_id,
        "status": one.status,
        "error": amount.error,
        "started": iso_time(manifest.created_ns),
        "ended": None if one.ended_ns is None else iso_time(one.ended_ns),
        "duration_seconds": round(one.duration_seconds, 3),
        "last_step": amount.last_step,
        "points": amount.points,
        "records": amount.records,
        "directory": str(one.run.path.absolute()),
        "pruned": None if (freed := one.run.freed) is None else iso_time(freed.time_ns),
        "complete": one.complete,
        "backends": {standing.backend: plain_standing(standing) for standing in one.standings},
    }


def plain_pruned(one: Pruned, *, dry_run: bool) -> dict[str, Any]:
    """What came of pruning one run."""
    return {
        "id": one.run.path.name,
        "freed": one.kept is None and not dry_run,
        "size_bytes": one.freed_bytes,
        "kept": one.kept,
    }


def plain_standing(standing: BackendStanding) -> dict[str, Any]:
    """How a run stands with one backend."""
    cursor, report = standing.cursor, standing.cursor.report
    return {
        "complete": standing.complete,
        "out_of_reach": standing.out_of_reach,
        "undelivered": standing.undelivered,
        "delivered": report.delivered,
        "points": report.points,
        "rejected": report.rejected,
        "lowered": report.lowered,
        "skipped": report.skipped,
        "notes": {reason: note.count for reason, note in report.notes.items()},
        "error": report.error,
        "suspended": report.suspended,
        "version": report.version,
        "remote_id": cursor.remote_id,
        "link": cursor.link,
    }


def plain_report(report: DeliveryReport) -> dict[str, Any]:
    """A delivery report, with the sentences that people get."""
    return {
        "id": report.run_id,
        "complete": report.complete,
        "command": None if report.complete else report.command,
        "backends": {standing.backend: plain_standing(standing) for standing in report.standings},
        "sentences": [line for standing in report.standings for line in standing.sentences()] + list(report.room),
    }


def plain_readout(one: Overview, readout: Readout) -> dict[str, Any]:
    """All a run holds."""
    metrics = {}
    for name, metric in readout.metrics.items():
        plain = asdict(metric)
        del plain["name"]
        plain["last_time"] = iso_time(plain.pop("last_time_ns"))
        metrics[name] = plain
    return {
        **plain_overview(one),
        "params": readout.params,
        "tags": readout.tags,
        "metrics": metrics,
        "values": [asdict(value) for value in readout.values],
        "values_left_out": readout.values_left_out,
        "attempts": readout.attempts,
        "superseded": readout.superseded,
        "damaged": readout.damaged,
        "sentences": [line for standing in one.standings for line in standing.sentences()],
    }


def plain_import(one: Imported) -> dict[str, Any]:
    """What became of one run of an import; counts and findings are of when it was imported."""
    note = one.note
    return {
        "id": one.run.path.name,
        "name": one.name,
        "directory": str(one.run.path.absolute()),
        "state": one.state,
        "status": None if note is None else one.run.end()[0],
        "complete": one.complete,
        "problem": one.problem or None,
        "source": None if note is None else note.source,
        "imported": None if note is None else iso_time(note.imported_ns),
        "counts": {} if note is None else note.counts,
        "findings": [] if note is None else [msgspec.structs.asdict(finding) for finding in note.findings],
    }


def plain_verification(one: Verification) -> dict[str, Any]:
    """What came of comparing a run with a backend."""
    return {
        "run_id": one.run_id,
        "backend": one.backend,
        "outcome": one.outcome,
        "reason": one.reason,
        "compared": one.compared,
        "undelivered": one.undelivered,
        "counts": dict(one.counts),
        "findings": [asdict(finding) for finding in one.findings],
        "explained": dict(one.explained),
        "not_compared": one.not_compared,
    }
