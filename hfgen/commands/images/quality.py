"""How good generated images are, in words: what `hfgen evaluate` prints."""

from __future__ import annotations

from typing import Any

from ...metrics import metric_named


def describe(found: dict[str, Any]) -> str:
    """Returns the lines that the command prints: a metric each, and what was compared.

    Args:
        found: metrics, and how they were measured, by the names of results.json.
    """
    details = found["metrics_details"]
    lines = []
    for name, value in found["metrics"].items():
        error = details.get(f"{name}_standard_error")
        number = "not measured" if value is None else f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
        lines.append(f"{metric_named(name).label:42} {number}")
    for reason in dict.fromkeys(found["metrics_missing"].values()):
        names = ", ".join(name for name, other in found["metrics_missing"].items() if other == reason)
        lines.append(f"Not measured: {names} ({reason}).")
    if rows := details.get("class_histogram"):
        shares = ", ".join(f"{row['name']} {row['generated']:.1%} ({row['real']:.1%})" for row in rows)
        lines.append(f"Classes of generated images (of real ones): {shares}")
    if "compared_images" in details:
        counts = details["compared_images"]
        lines.append(
            f"{counts['generated']:,} images of {found['source']} beside {counts['real']:,} of {found['dataset']} "
            f"({found['split']}); classifier of {details['classifier_task']}, SHA-256 "
            f"{details['classifier_sha256'][:12]}"
        )
    return "\n".join(lines)
