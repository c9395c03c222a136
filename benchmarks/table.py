"""Targets, what was measured, and whether they are met, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        measured: None: it was not, and ``note`` says why.
        unit: Of ``measured`` and ``bound``.
        bound: The target; None: recorded only.
        at_most: Whether the target is an upper bound.
        note: What it is compared with, or why it was not measured.
        quiet: False: other processes disturbed the measurement; None: nothing is known.
        details: For the JSON only.
    """

    what: str
    measured: float | None
    unit: str
    bound: float | None = None
    at_most: bool = True
    note: str = ""
    quiet: bool | None = None
    details: dict = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None: there is none, or nothing was measured."""
        if self.measured is None or self.bound is None:
            return None
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def report(self) -> dict:
        """JSON of this row."""
        return {
            "what": self.what, "target": self.bound, "target_is": "at most" if self.at_most else "at least",
            "measured": None if self.measured is None else round(self.measured, 3), "unit": self.unit,
            "met": self.met, "quiet": self.quiet, "note": self.note, **self.details,
        }

    @staticmethod
    def from_report(report: dict) -> Row:
        """The row that ``report`` was made of, less its details."""
        return Row(
            report["what"], report["measured"], report["unit"], report["target"],
            report["target_is"] == "at most", report["note"], report["quiet"],
        )


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    digits = 2
    while digits > 0 and abs(value) >= 10 ** (3 - digits):
        digits -= 1
    return f"{value:.{digits}f}"


def markdown(rows: list[Row]) -> str:
    """The table, readable as text and as Markdown."""
    lines = [("what", "target", "measured", "", "compared with")]
    for row in rows:
        sign = "<=" if row.at_most else ">="
        target = "recorded" if row.bound is None else f"{sign} {number(row.bound)} {row.unit}".strip()
        measured = "not run" if row.measured is None else f"{number(row.measured)} {row.unit}".strip()
        verdict = {True: "met", False: "missed", None: ""}[row.met]
        if row.quiet is False:
            verdict = f"{verdict} (disturbed)".strip()
        lines.append((row.what, target, measured, verdict, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
