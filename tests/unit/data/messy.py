"""Three tables as customers send them, the same people in each: which of them leave can be learned from the columns.

customers.csv: commas, quotes with line breaks, currency, thousands, ISO dates. kunden.csv: semicolons, decimal commas,
CRLF, a byte-order mark, days before months, blank lines. export.tsv.gz: tabs, no header, compressed."""

import csv
import gzip
import io

import numpy as np

CITIES = ("Bern", "Basel", "Chur", "Genf", "Zürich")
PLANS = ("basic", "plus", "pro")


def people(count, seed=0):
    """Dicts of what is known about each, and whether they leave."""
    r = np.random.default_rng(seed)
    columns = {
        "age": r.integers(18, 90, count),
        "city": r.choice(CITIES, count, p=[0.35, 0.25, 0.2, 0.15, 0.05]),
        "plan": r.choice(PLANS, count),
        "spend": r.gamma(2, 800, count).round(2),
        "months": r.integers(0, 120, count),
        "calls": r.poisson(2, count),
        "since": np.datetime64("2015-01-01") + r.integers(0, 3000, count),
        "member": r.random(count) < 0.5,
        "zip": r.integers(1, 9, count),
    }
    plan = np.select([columns["plan"] == "basic", columns["plan"] == "pro"], [1.5, -1.5])
    score = plan + 0.8 * (columns["calls"] - 2) - 0.03 * (columns["months"] - 60) - 0.0006 * (columns["spend"] - 1600)
    score += np.where(columns["member"], -0.7, 0.7) + 0.02 * (columns["age"] - 50)
    columns["leaves"] = r.random(count) < 1 / (1 + np.exp(-2 * score))
    columns["lacks"] = r.random((count, 3)) < 0.05
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _text(head, rows, delimiter=",", end="\n"):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerows([head, *rows] if head else rows)
    return out.getvalue()


def customers(path, count=1500, seed=0):
    head = ["customer_id", "name", "age", "city", "plan", "spend", "months", "calls", "since", "member"]
    head += ["zip", "notes", "churn"]
    rows = [
        [
            *(f"C-{10_000 + i}", f"Name {i}, Jr.", "" if p["lacks"][0] else p["age"]),
            *("N/A" if p["lacks"][1] else f" {p['city']}", p["plan"], f"${p['spend']:,.2f}" if p["spend"] else "-"),
            *(p["months"], p["calls"], p["since"], "yes" if p["member"] else "no", f"0{p['zip']}000"),
            *(f'called,\n said "{i} times"', "left" if p["leaves"] else "stays"),
        ]
        for i, p in enumerate(people(count, seed))
    ]
    path.write_text(_text(head, rows), encoding="utf-8", newline="")
    return path


def kunden(path, count=1500, seed=0):
    head = [
        "Kundennummer",
        "Alter",
        "Ort",
        "Tarif",
        "Umsatz (€)",
        "Monate",
        "Anrufe",
        "Kunde seit",
        "Mitglied",
        "Kündigt",
    ]
    rows = [
        [
            *(i + 1, "" if p["lacks"][0] else p["age"], "k.A." if p["lacks"][1] else p["city"], p["plan"]),
            *(f"{p['spend']:,.2f}".translate(str.maketrans(",.", ".,")), p["months"], p["calls"]),
            *(p["since"].item().strftime("%d.%m.%Y"), "ja" if p["member"] else "nein", "ja" if p["leaves"] else "nein"),
        ]
        for i, p in enumerate(people(count, seed))
    ]
    lines = _text(head, rows, ";", "\r\n").splitlines(keepends=True)
    path.write_bytes("".join([*lines[:40], "\r\n", *lines[40:], "\r\n"]).encode("utf-8-sig"))
    return path


def export(path, count=1500, seed=0):
    rows = [
        [
            *("NULL" if p["lacks"][0] else p["age"], p["city"], p["plan"], "NULL" if p["lacks"][2] else p["spend"]),
            *(p["months"], p["calls"], f"{p['since']} 12:30:00", str(p["member"]).lower(), int(p["leaves"])),
        ]
        for p in people(count, seed)
    ]
    path.write_bytes(gzip.compress(_text(None, rows, "\t").encode()))
    return path


FILES = {"customers.csv": (customers, "churn"), "kunden.csv": (kunden, "Kündigt"), "export.tsv.gz": (export, "8")}
