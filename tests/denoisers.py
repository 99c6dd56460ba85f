"""The table of denoiser classes in the page of compatibility, written from the library's own.

``python -m tests.denoisers`` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from xattn.models import FAMILIES
from xattn.models.denoisers import RECORDED, REFUSED, SINCE, UNEDITED

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- denoisers:begin -->", "<!-- denoisers:end -->"


def table() -> str:
    """Return the table: recorded classes first, then the refused ones with the reason."""
    lines = [
        f"{len(RECORDED)} classes are recorded, {len(REFUSED)} refused.",
        "",
        "| denoiser class | recording | editing | |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | exact | {edited(name)} | {draws}{since(name)} |"
            for name, draws in sorted(RECORDED.items())
        ),
        *(f"| `{name}` | refused | refused | {why} |" for name, why in sorted(REFUSED.items())),
    ]
    return "\n".join(lines)


def edited(name: str) -> str:
    """Return whether a recorded class is edited, or why not."""
    (family,) = (each for each in FAMILIES if name in each.classes)
    if not family.edits:
        return f"refused: {UNEDITED[family.classes[0]]}"
    return "yes" if "blend" in family.edits else "yes, without `LocalBlend`"


def since(name: str) -> str:
    """Return which diffusers has a class first, where that is not the oldest supported one."""
    return f"; diffusers {SINCE[name]} or newer" if name in SINCE else ""


def written(text: str) -> str:
    """Return the page's text with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
